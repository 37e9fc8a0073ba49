"""The `howto` command. What a command needs is imported when it runs, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from howto.core.errors import reports_errors

app = typer.Typer(
    name="howto",
    help="Fine-tune a chat model to write step-by-step instructions, and measure what that bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
@reports_errors
def check() -> None:
    """Check params.yaml and name the active profile."""
    from howto.params import read_params

    params = read_params()
    print(f"{params.path}: every key is known and valid. The active profile is {params.profile}.")


@app.command()
@reports_errors
def preview(rows: Annotated[int, typer.Option(metavar="N", min=0, help="Show N training rows.")] = 3) -> None:
    """Show the prompts and answers that training uses, as text and as tokens."""
    from howto.params import read_params
    from howto.tools.preview import preview as show

    show(read_params(), rows)


@app.command()
@reports_errors
def ask(  # noqa: PLR0917  # options of a command line, each given by name
    intent: Annotated[str | None, typer.Argument(help="What you want to do. Without it: a prompt.")] = None,
    context: Annotated[str, typer.Option(help="A text that the answer is drawn from.")] = "",
    input: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of intents: lines of text, or rows; - for standard input."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the answers to --input here, as JSONL.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Another PEFT folder. [default: models/adapter]")] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model instead of the fine-tuned one.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Let both models answer, side by side.")] = False,
) -> None:
    """Answer an intent, a file of intents, or a prompt."""
    wrong = [
        (intent is not None and input is not None, "give an intent or --input, not both"),
        (output is not None and input is None, "--output goes with --input"),
        (bool(context) and intent is None, "--context goes with an intent"),
        (compare and input is not None, "--compare goes with an intent or the prompt, not with --input"),
        (base and (compare or adapter is not None), "--base goes with neither --compare nor --adapter"),
    ]
    if problem := next((message for is_wrong, message in wrong if is_wrong), None):
        raise typer.BadParameter(problem)

    from howto.params import read_params
    from howto.tools.ask import ask as answer

    models = ("base", "adapter") if compare else ("base",) if base else ("adapter",)
    answer(read_params(), models, intent=intent, context=context, input=input, output=output, adapter=adapter)


@app.command()
@reports_errors
def compare(
    old: Annotated[
        str | None, typer.Argument(metavar="OLD", help="A git revision or DVC experiment, or several: a,b,c.")
    ] = None,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same; . is this folder.")] = ".",
    of: Annotated[
        str | None, typer.Option(metavar="RUNS", help="Compare base and fine-tuned model over runs: .,a,b.")
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N typical rows, or the N largest gains and regressions.")
    ] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison as JSON.")] = None,
) -> None:
    """Compare base and fine-tuned model, or two versions of it. Several runs of one version differ in train.seed."""
    if old is not None and of is not None:
        raise typer.BadParameter("give OLD or --of, not both")
    if old is None and of is None and json is not None:
        raise typer.BadParameter("--json needs OLD or --of")

    from howto.tools.compare_table import print_comparison, print_last_run

    if old is None and of is None:
        print_last_run(rows)
        return

    from howto.core.atomic import write_json
    from howto.evaluation.config import Evaluate
    from howto.params import read_params
    from howto.tools.ask import check_output
    from howto.tools.compare import compare_versions
    from howto.tools.versions import versions

    if json:
        check_output(json)
    config = read_params().section(Evaluate)
    found = compare_versions([] if old is None else versions(old), versions(new if of is None else of), config)
    print_comparison(found, rows)
    if json:
        write_json(json, found.as_json())


@app.command()
@reports_errors
def export(
    output: Annotated[Path, typer.Option(metavar="FOLDER")] = Path("models/exported"),
    adapter: Annotated[Path | None, typer.Option(metavar="FOLDER", help="[default: models/adapter]")] = None,
) -> None:
    """Merge the adapter into the base, as a Hugging Face folder."""
    from howto.tools.export import export as write

    write(output, adapter)


@app.command()
@reports_errors
def doctor() -> None:
    """Check whether this machine can run the active profile."""
    from howto.tools.doctor import doctor as check_machine

    check_machine()


@app.command()
@reports_errors
def verify(
    here: Annotated[bool, typer.Option("--here", help="Use this environment instead of a fresh one.")] = False,
) -> None:
    """Run HEAD again in a fresh clone, and compare every byte."""
    from howto.tools.verify import verify as run_again

    run_again(here=here)


@app.command()
@reports_errors
def recover() -> None:
    """Repair what a killed DVC left behind."""
    from howto.tools.recover import recover as repair

    repair()


def main() -> None:
    """Run the command line."""
    app()
