"""params.yaml is checked as a whole; each mistake is one line that names file, line and key."""

from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.data.config import Prepare, ProfilePrepare
from howto.inference.config import Infer, ProfileInfer
from howto.params import read_params
from howto.sources.config import Model
from howto.training.config import ProfileTrain, Train, train_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def edited(tmp_path: Path, old: str, new: str) -> Path:
    assert old in TEXT
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_committed_file_is_valid_and_its_active_profile_needs_no_hub() -> None:
    params = read_params(ROOT / "params.yaml")
    assert params.profile == "smollm2"
    assert params.section(Model).source.startswith("package:")


def test_the_tinyllama_profile_holds_the_pinned_model_and_the_published_settings(tmp_path: Path) -> None:
    params = read_params(edited(tmp_path, "profile: smollm2", "profile: tinyllama"))
    model = params.section(Model)
    assert model.revision == "fe8a4ea1ffedaf415f4da2f062534de366a451e6"
    shared, profile = train_settings(params)
    assert (profile.epochs, profile.learning_rate) == (10, 2e-4)
    assert (shared.lora.r, shared.lora.alpha, shared.lora.dropout, shared.max_length) == (8, 16, 0.05, 512)


def test_the_dollyeval_profile_holds_the_settings_of_the_published_script(tmp_path: Path) -> None:
    params = read_params(edited(tmp_path, "profile: smollm2", "profile: dollyeval"))
    shared, profile = train_settings(params)
    lora = shared.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (256, 8, 0.1, ["q_proj", "v_proj"])
    assert (profile.epochs, profile.learning_rate, profile.batch_size, shared.max_length) == (10, 1e-3, 32, 512)
    assert (shared.weight_decay, shared.warmup_ratio, shared.max_grad_norm, shared.seed) == (0.01, 0, 1, 10)
    assert (shared.schedule, shared.keep, shared.validation_answers) == ("cosine", "best_rougeL", 1000)
    decoding = params.section(ProfileInfer).decoding(params.section(Infer))
    assert (decoding.temperature, decoding.top_p, decoding.top_k) == (1, 1, None)
    assert (decoding.max_prompt_tokens, decoding.max_new_tokens) == (256, 256)
    assert decoding.seeds == [10, 20, 30, 40, 50]


def test_a_profile_overrides_settings_of_training_each_checked_as_the_shared_one(tmp_path: Path) -> None:
    def with_more(lines: str) -> Path:
        return edited(tmp_path, "      steps: 80 ", f"{lines}      steps: 80 ")

    params = read_params(with_more("      lora: {r: 4, alpha: 32}\n      keep: last\n"))
    shared, own = params.section(Train), train_settings(params)[0]
    assert own == shared.model_copy(
        update={"keep": "last", "lora": shared.lora.model_copy(update={"r": 4, "alpha": 32})}
    )
    wrong = {
        "      lora: {rank: 4}\n": r"params\.yaml:\d+: profiles\.smollm2\.train\.lora\.rank: unknown key",
        "      lora: {r: 0}\n": r"profiles\.smollm2\.train\.lora\.r: expected greater than or equal to 1, got 0",
        "      keep: best_rougeL\n": r"profiles\.\*\.train with train: keep: best_rougeL needs validation_answers",
        "      lora: {init: orthogonal, r: 3}\n": r"profiles\.\*\.train with train: .*orthogonal: expected an even r",
    }
    for lines, message in wrong.items():
        with pytest.raises(UserError, match=message):
            read_params(with_more(lines))


@pytest.mark.parametrize("written", ["1e-05", "1.0e-5", "0.00001"])
def test_a_learning_rate_in_any_notation_is_a_float(tmp_path: Path, written: str) -> None:
    params = read_params(edited(tmp_path, "learning_rate: 3.0e-3", f"learning_rate: {written}"))
    assert params.section(ProfileTrain).learning_rate == 1e-5


def test_a_profile_overrides_the_shared_sizes_of_splits(tmp_path: Path) -> None:
    params = read_params(ROOT / "params.yaml")
    split = params.section(ProfilePrepare).applied_to(params.section(Prepare)).split
    assert (split.validation, split.test, split.train) == (60, 120, "rest")
    with pytest.raises(UserError, match=r"prepare\.split with the profile's own prepare: the shares"):
        read_params(edited(tmp_path, "      test: 120\n", "      test: 0.95\n      train: 0.1\n"))


def test_a_test_of_no_rows_is_refused_unless_held_out_rows_come_from_elsewhere(tmp_path: Path) -> None:
    for nothing in ("0", "0.0"):
        path = edited(tmp_path, "      test: 120\n", f"      test: {nothing}\n")
        with pytest.raises(UserError, match=r"prepare\.split\.test .* leaves no row to be scored.*data\.test_source"):
            read_params(path)
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("source: ./data/howto", "source: a.jsonl\n      test_source: b.jsonl"), encoding="utf-8"
        )
        assert read_params(path).section(ProfilePrepare).test == 0


MISTAKES = {
    "unknown key": ("    r: 8 ", "    rank: 8 ", "train.lora.rank: unknown key. Did you mean r?"),
    "unknown section": ("\ntrain:", "\ntrian:", "trian: unknown key. Did you mean train?"),
    "unknown key in a profile": (
        "      learning_rate: ",
        "      learning_rat: ",
        "profiles.smollm2.train.learning_rat: unknown key. Did you mean learning_rate?",
    ),
    "missing key": ("  seed: 42", "  #", "train.seed: missing key"),
    "text for a number": ("alpha: 16 ", 'alpha: "16" ', "train.lora.alpha: expected a valid number, got '16'"),
    "out of range": ("dropout: 0.05", "dropout: 1.5", "train.lora.dropout: expected less than 1, got 1.5"),
    "not a number at all": ("dropout: 0.05", "dropout: .nan", "train.lora.dropout: "),
    "unknown choice": (
        "keep: best_loss ",
        "keep: best_los ",
        "train.keep: expected 'best_loss', 'best_rougeL' or 'last', got 'best_los'",
    ),
    "unknown profile": ("profile: smollm2", "profile: gpt5", "profile: no profile 'gpt5'. Choose one of"),
    "no profile": ("profile: smollm2", "#", "profile: missing key"),
    "shares that leave no row": ("    test: 0.1 ", "    test: 0.95 ", "prepare.split: the shares of train, validation"),
    "a share of more than all": ("    test: 0.1 ", "    test: 1.5 ", "prepare.split.test: expected a share"),
    "bounds that leave nothing": (
        "min_characters: null        # int or null; of a response\n    max_characters: null",
        "min_characters: 9\n    max_characters: 8",
        "prepare.reject: min_characters is larger than max_characters",
    ),
    "near-duplicates go, equal rows stay": (
        "    exact: true ",
        "    exact: false ",
        "prepare.duplicates: exact: false keeps equal rows, and near rejects them",
    ),
    "one column for two things": (
        "    response: response ",
        "    response: instruction ",
        "prepare.columns: two of them name the column instruction",
    ),
    "micro batches that do not fit": (
        "micro_batch_size: 16",
        "micro_batch_size: 5",
        "batch_size must be a multiple of micro_batch_size",
    ),
    "a base shared out to one process": (
        "fsdp: false ",
        "fsdp: true ",
        "profiles.smollm2.train: fsdp: expected processes of 2 or more, got 1",
    ),
    "a day without quotes": (
        "weights_sha256: 6e60",
        "date: 2024-07-26\n      weights_sha256: 6e60",
        'model.date: expected a day such as "2024-07-26", in quotes',
    ),
    "a hash that is none": ("weights_sha256: 6e60", "weights_sha256: 6e6", "profiles.tinyllama.model.weights_sha256"),
    "a key twice": ("  seed: 42", "  max_length: 1\n  seed: 42", 'found duplicate key "max_length"'),
    "not YAML": ("\ntrain:", "\n  - train:", "params.yaml:"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    old, new, expected = MISTAKES[name]
    path = edited(tmp_path, old, new)
    with pytest.raises(UserError) as error:
        read_params(path)
    message = str(error.value)
    assert expected in message and message.startswith(str(path)) and "\n" not in message


def test_the_line_of_a_mistake_is_named(tmp_path: Path) -> None:
    path = edited(tmp_path, "    r: 8 ", "    r: -8 ")
    line = TEXT[: TEXT.index("    r: 8 ")].count("\n") + 1
    with pytest.raises(UserError, match=f"params.yaml:{line}: train.lora.r"):
        read_params(path)


def test_a_missing_file_and_one_that_is_not_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"profile: \xff")
    with pytest.raises(UserError, match="byte 9 is not UTF-8"):
        read_params(tmp_path / "params.yaml")
