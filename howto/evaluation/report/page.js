
// Fills the page from the JSON in #content. Texts of rows become text nodes, never HTML.
"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const { metrics, rows } = content;
const gains = rows.map((row) => row.adapter_rougeL - row.base_rougeL);

// ---------------------------------------------------------------- elements and texts

const byId = (id) => document.getElementById(id);

function add(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const make = (tag, attributes = {}, ...children) => add(document.createElement(tag), attributes, children);

const draw = (tag, attributes = {}, ...children) =>
  add(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** The text with each character that hides or reorders text escaped, as \u202e; newlines and tabs stay. */
const visible = (text) =>
  String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (character) =>
    "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"));

const present = (value) => value !== undefined && value !== null;
const sign = (value, text) => (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
const score = (value) => (value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(4);
const difference = (value) => sign(value, Math.abs(value).toFixed(4));
const percent = (value) => (100 * value).toFixed(1) + "%";
const number = (value) => value.toFixed(2);
const count = (value) => value.toLocaleString("en-US");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const counted = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;

/** The text of an interval: of scores, or with `difference` as its format. */
const interval = (low, high, format = score) =>
  present(low) && present(high) ? `[${format(low)}, ${format(high)}]` : "";

/** The class that colours a difference, beside its sign. One that may be chance has no colour. */
function colourOf(value, low = value, high = value) {
  if (low > 0 && difference(value) !== "0.0000") return "plus";
  return high < 0 && difference(value) !== "0.0000" ? "minus" : "";
}

/** Round values that cover low..high, about as many as `amount`. */
function ticks(low, high, amount) {
  const rough = (high - low) / amount;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const all = [];
  for (let n = Math.ceil(low / step - 1e-6); n * step <= high + step * 1e-6; n += 1) all.push(n * step);
  return all;
}

/** A tick's label without trailing zeros: 0.5, 1, 12,000. */
const label = (value) => (Math.abs(value) >= 1000 ? count(Math.round(value)) : score(value).replace(/\.?0+$/, ""));

// ---------------------------------------------------------------- tracks: one strip of a chart in each table row

// Places are in percent of the strip's width, so a resized window needs no new drawing.
const at = (scale, value) => `${(100 * (value - scale.low)) / (scale.high - scale.low)}%`;

function track(scale, ...marks) {
  const lines = scale.ticks.map((tick) =>
    draw("line", {
      class: scale.low < 0 && tick === 0 ? "zero" : "grid",
      x1: at(scale, tick), x2: at(scale, tick), y1: "0", y2: "100%",
    }),
  );
  return draw("svg", { "aria-hidden": "true" }, ...lines, ...marks.flat());
}

function trackAxis(scale) {
  const labels = scale.ticks.map((tick) => {
    const text = draw("text", { class: "middle", x: at(scale, tick), y: "0.875rem" });
    text.append(label(tick));
    return text;
  });
  return draw("svg", { "aria-hidden": "true" }, ...labels);
}

/** A bar is a thick line, so it has the same thickness in each table row. */
const bar = (scale, kind, from, to) =>
  draw("line", { class: `bar ${kind}`, x1: at(scale, from), x2: at(scale, to), y1: "50%", y2: "50%" });

function whisker(scale, low, high, kind = "", caps = true) {
  if (!present(low) || !present(high)) return [];
  const [from, to] = [at(scale, low), at(scale, high)];
  const line = (x1, x2, y1, y2) => draw("line", { class: `whisker ${kind}`, x1, x2, y1, y2 });
  return [line(from, to, "50%", "50%"), ...(caps ? [from, to].map((x) => line(x, x, "40%", "60%")) : [])];
}

// ---------------------------------------------------------------- scores

const SCORES = { low: 0, high: 1, ticks: [0, 0.25, 0.5, 0.75, 1] };
function scoreRow(name, chart, text, textClass, intervalText, rowClass) {
  return make("tr", { class: rowClass },
    make("th", { scope: "row" }, name),
    make("td", { class: "track" }, chart),
    make("td", { class: `number ${textClass}` }, text),
    make("td", { class: "number interval" }, intervalText),
  );
}

const rowGroup = (title, columns) =>
  make("tr", {}, make("th", { scope: "rowgroup", colspan: columns }, title));

function modelRow(model, name) {
  const { rougeL, rougeL_low: low, rougeL_high: high } = metrics[model] ?? {};
  if (!present(rougeL)) return null;
  const chart = track(SCORES, bar(SCORES, model, 0, rougeL), whisker(SCORES, low, high));
  const key = make("span", { class: `key ${model}` }, name);
  return scoreRow(key, chart, score(rougeL), "", interval(low, high), "models");
}

/** The difference, drawn from the end of the base model's bar. */
function differenceRow() {
  const { rougeL: delta, rougeL_low: low, rougeL_high: high } = metrics.delta ?? {};
  if (!present(delta)) return null;
  const start = metrics.base?.rougeL ?? 0;
  const ends = present(low) && present(high) ? whisker(SCORES, start + low, start + high) : [];
  const chart = track(SCORES, bar(SCORES, "between", start, start + delta), ends);
  const between = interval(low, high, difference);
  return scoreRow("Difference", chart, difference(delta), colourOf(delta, low, high), between, "models");
}

/** A row without an interval for each key of `labels` that has a score. */
function plainRows(labels, scores) {
  return Object.entries(labels)
    .filter(([key]) => present(scores?.[key]))
    .map(([key, name]) => {
      const chart = track(SCORES, bar(SCORES, "", 0, scores[key]));
      return scoreRow(capital(name), chart, score(scores[key]), "", "", "");
    });
}

const SEEDS_NOTE = "Another training seed would change the score of the fine-tuned model too.";

function fillScores() {
  const table = byId("score-table");
  table.querySelector("th.track").append(trackAxis(SCORES));
  const groups = [
    [null, [modelRow("base", "Base model"), modelRow("adapter", "Fine-tuned"), differenceRow()]],
    ["Baselines: answers that need no model", plainRows(content.baseline_labels, metrics.baselines)],
    ["Ceiling", plainRows({ reference: "the reference itself" }, metrics.ceiling)],
  ];
  for (const [title, lines] of groups) {
    const shown = lines.filter((line) => line !== null);
    if (shown.length) table.append(make("tbody", {}, title && rowGroup(title, 4), ...shown));
  }
  table.hidden = !table.tBodies.length;

  const { rows: total, procedural_rows: procedural, seeds, delta = {} } = metrics;
  const steps = present(procedural) ? `, ${count(procedural)} of which ask for steps` : "";
  byId("scores-lead").append(
    "ROUGE-L (F-measure, 0 to 1)",
    present(total) ? ` on ${counted(total, "held-out row", "held-out rows")}${steps}` : "",
    seeds > 1 ? `; ${seeds} seeds` : "",
    ". It counts the words that answer and reference have in common, in order.",
    " Whiskers and brackets are intervals over rows.",
  );
  const { wins, ties, losses, p_value: p } = delta;
  const outcome = [
    present(wins) && `higher on ${counted(wins, "row", "rows")}`,
    present(ties) && `the same on ${count(ties)}`,
    present(losses) && `lower on ${count(losses)}`,
  ].filter(Boolean);
  byId("score-note").append(
    outcome.length ? `The fine-tuned model scores ${outcome.join(", ")}. ` : "",
    present(p) ? `The difference has p\u00a0${p < 0.0001 ? "<" : "="}\u00a0${Math.max(p, 0.0001).toFixed(4)}. ${SEEDS_NOTE}` : "",
  );
}

const MEASURES = [
  ["rouge1", "ROUGE-1", score, "single words in common with the reference"],
  ["rouge2", "ROUGE-2", score, "pairs of words in common with the reference"],
  ["rougeLsum", "ROUGE-Lsum", score, "ROUGE-L line by line"],
  ["rougeL_seed_sd", "ROUGE-L across seeds", score, "standard deviation of the seeds' means"],
  ["similarity", "Similarity in meaning", score, "of answer and reference, by an embedding model"],
  ["ended_by_eos", "Ended by itself", percent, "answers that were not cut at the token limit"],
  ["empty", "Empty", count, "answers without text"],
  ["repeated", "Repeated 4-grams", percent, "runs of four words that occur earlier in the answer; less is better"],
  ["copied", "Copied from the prompt", percent, "runs of four words that also occur in the prompt"],
  ["length_ratio", "Length ratio", number, "length of all answers over length of all references"],
  ["well_numbered", "Well-numbered", percent, "only steps 1 to n, on rows whose reference is such a list"],
  ["steps_in_order", "Steps in order", percent, "steps numbered 1 to n, perhaps with other lines, on the same rows"],
  ["steps_off", "Steps off", number, "mean difference in the number of steps, on the same rows"],
  ["perplexity", "Perplexity of the references", number, "how much they surprise the model; less is better"],
];

function fillMeasures() {
  const body = byId("measure-table").tBodies[0];
  const { base = {}, adapter = {} } = metrics;
  for (const [key, name, format, explained] of MEASURES) {
    if (!present(base[key]) && !present(adapter[key])) continue;
    const cell = (value) => make("td", { class: "number" }, present(value) ? format(value) : "");
    body.append(
      make("tr", {},
        make("th", { scope: "row" }, name), cell(base[key]), cell(adapter[key]),
        make("td", { class: "explained" }, explained),
      ),
    );
  }
  byId("measure-table").hidden = !body.rows.length;
}

const STEPS = [ // 1: more is better
  ["coverage", "Covered", 1, "share of the reference's steps that the answer has"],
  ["order", "In order", 1, "Kendall's tau of the matched steps: 1 in the reference's order, \u22121 reversed"],
  ["superfluous", "Superfluous", -1, "share of the answer's steps that match none; less is better"],
];

function fillSteps() {
  const body = byId("step-table").tBodies[0];
  for (const [name, title, better, explained] of STEPS) {
    const [base, adapter, delta] = ["base", "adapter", "delta"].map((part) => {
      const values = ["", "_low", "_high", "_rows"].map((end) => metrics[part]?.[`step_${name}${end}`] ?? undefined);
      return present(values[0]) ? values : null;
    });
    if (!base && !adapter) continue;
    const cell = (values, format, kind = "") => {
      if (!values) return make("td", { class: "number" });
      const [value, low, high] = values;
      const ends = make("span", { class: "interval" }, interval(low, high, format));
      return make("td", { class: "number" }, make("span", { class: kind }, format(value)), ends);
    };
    const [value, low, high] = delta ?? [];
    const colour = colourOf(better * value, ...(better > 0 ? [low, high] : [-high, -low]).map((end) => end ?? NaN));
    const on = [base, adapter].map((values) => count(values?.[3] ?? 0)).join(" and ");
    body.append(
      make("tr", {},
        make("th", { scope: "row" }, title),
        cell(base, score), cell(adapter, score), cell(delta, difference, colour),
        make("td", { class: "explained" }, `${explained}; on ${on} rows`),
      ),
    );
  }
  byId("step-table").hidden = !body.rows.length;
}

// ---------------------------------------------------------------- slices

function fillSlices() {
  const { slices } = content;
  const table = byId("slice-table");
  if (!slices.length) return;
  const ends = slices.flatMap((group) => [group.delta, group.delta_low, group.delta_high]).filter(present);
  const [low, high] = [Math.min(0, ...ends), Math.max(0.1, ...ends)];
  const margin = 0.04 * (high - low);
  const scale = { low: low < 0 ? low - margin : -margin, high: high + margin, ticks: ticks(low, high, 5) };
  table.querySelector("th.track").append(trackAxis(scale));
  for (const slice of new Set(slices.map((group) => group.slice))) {
    const body = make("tbody", {}, rowGroup(visible(capital(slice)), 7));
    for (const group of slices.filter((other) => other.slice === slice)) {
      const { delta, delta_low: from, delta_high: to } = group;
      const few = !present(from);
      const dot = draw("circle", { class: "dot adapter", cx: at(scale, delta), cy: "50%", r: "4.5" });
      body.append(
        make("tr", few ? { class: "few" } : {},
          make("th", { scope: "row" }, visible(group.group)),
          make("td", { class: "number rows" }, present(group.rows) ? count(group.rows) : ""),
          make("td", { class: "number model" }, present(group.base) ? score(group.base) : ""),
          make("td", { class: "number model" }, present(group.adapter) ? score(group.adapter) : ""),
          make("td", { class: "track" }, track(scale, whisker(scale, from, to, "adapter", false), dot)),
          make("td", { class: `number ${colourOf(delta, from, to)}` }, difference(delta)),
          make("td", { class: "number interval" }, few ? "too few rows" : interval(from, to, difference)),
        ),
      );
    }
    table.append(body);
  }
}

// ---------------------------------------------------------------- what it cost elsewhere

function fillElsewhere() {
  const { general, chat } = metrics;
  const body = byId("cost-table").tBodies[0];
  const line = (name, base, adapter, explained) =>
    body.append(
      make("tr", {},
        make("th", { scope: "row" }, name),
        ...[base, adapter].map((value) => make("td", { class: "number" }, value)),
        make("td", { class: "explained" }, explained),
      ),
    );
  if (general) {
    const { perplexity_change: change, perplexity_change_low: low, perplexity_change_high: high } = general.delta;
    const signed = (value) => sign(value, percent(Math.abs(value)));
    line("Perplexity of general text", number(general.base.perplexity), number(general.adapter.perplexity),
      `${signed(change)}, interval ${interval(low, high, signed)}; ${counted(general.passages, "passage", "passages")}, ` +
      `${counted(general.tokens, "token", "tokens")}; less is better`);
  }
  if (chat) {
    const { base, adapter, questions, checkable } = chat;
    if (checkable) {
      line("With the right word", percent(base.correct), percent(adapter.correct),
        `answers to the ${counted(checkable, "question", "questions")} that have one`);
    }
    line("Numbered lists", percent(base.numbered), percent(adapter.numbered),
      `of the answers to ${counted(questions, "question", "questions")} that ask for none`);
  }
}

function fillChat() {
  const { chat } = content;
  byId("chat").querySelector("summary").append(`${counted(chat.length, "question", "questions")} with both answers`);
  const answer = (kind, name, text, right) =>
    make("section", { class: `answer ${kind}` },
      make("span", { class: `key ${kind}` }, name),
      " ",
      present(right) ? make("span", { class: right ? "plus" : "minus" }, right ? "\u2713 right word" : "\u2717 no right word") : null,
      textOf(text),
    );
  for (const { question, accepted, base, adapter, base_correct: before, adapter_correct: after } of chat) {
    byId("chat").append(
      make("div", { class: "pair" },
        make("h3", { dir: "auto" }, visible(question)),
        answer("base", "Base", base, before),
        answer("adapter", "Fine-tuned", adapter, after),
        accepted.length ? make("p", { class: "about" }, `Accepted: ${visible(accepted.join(", "))}`) : null,
      ),
    );
  }
}

// ---------------------------------------------------------------- charts

const HEIGHT = 250;
const MARGIN = { top: 10, right: 20, bottom: 42, left: 44 };

/** A drawing's frame: two axes with ticks, and functions from values to pixels. `x.part` may map values to 0..1. */
function plot(width, x, y) {
  const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const part = x.part ?? ((value) => (value - x.low) / (x.high - x.low));
  const left = (value) => MARGIN.left + part(value) * inner.width;
  const top = (value) => MARGIN.top + (1 - (value - y.low) / (y.high - y.low)) * inner.height;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const text = (kind, xPlace, yPlace, words) => {
    const element = draw("text", { class: kind, x: xPlace, y: yPlace });
    element.append(words);
    svg.append(element);
  };
  for (const tick of y.ticks) {
    const place = { x1: MARGIN.left, x2: width - MARGIN.right, y1: top(tick), y2: top(tick) };
    svg.append(draw("line", { class: tick === y.low ? "zero" : "grid", ...place }));
    text("end", MARGIN.left - 8, top(tick) + 4, label(tick));
  }
  for (const tick of x.ticks) text("middle", left(tick), HEIGHT - MARGIN.bottom + 18, label(tick));
  text("middle", MARGIN.left + inner.width / 2, HEIGHT - 6, x.title);
  return { svg, left, top };
}

/** Draw a figure now and whenever its width changes, so that its text keeps its size. */
function keepDrawn(figure, drawing) {
  const place = figure.querySelector(".drawing");
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.round(place.clientWidth);
    if (width < 100 || width === last) return;
    last = width;
    place.replaceChildren(drawing(width));
  }).observe(place);
}

const BIN = 0.05;

/** How many rows gained how much. The middle bin is centred on zero: there the models are even. */
function fillHistogram() {
  const bins = new Map();
  for (const gain of gains) {
    const bin = Math.round(gain / BIN + 1e-9);
    bins.set(bin, (bins.get(bin) ?? 0) + 1);
  }
  const numbers = [...bins.keys()];
  const [first, last] = [Math.min(-2, ...numbers), Math.max(2, ...numbers)];
  const mean = gains.reduce((sum, gain) => sum + gain, 0) / gains.length;
  const total = (included) => [...bins].reduce((sum, [bin, height]) => sum + (included(bin) ? height : 0), 0);
  const better = {
    base: total((bin) => bin < 0),
    neither: total((bin) => bin === 0),
    adapter: total((bin) => bin > 0),
  };
  byId("histogram").querySelector(".keys").append(
    make("span", { class: "key base" }, `base better: ${count(better.base)}`),
    make("span", { class: "key" }, `even: ${count(better.neither)}`),
    make("span", { class: "key adapter" }, `fine-tuned better: ${count(better.adapter)}`),
  );
  keepDrawn(byId("histogram"), (width) => {
    const highest = Math.max(...bins.values());
    const [low, high] = [(first - 0.5) * BIN, (last + 0.5) * BIN];
    const x = { low, high, ticks: ticks(low, high, 5), title: "fine-tuned minus base, ROUGE-L" };
    const y = { low: 0, high: highest * 1.05, ticks: ticks(0, highest, 4).filter(Number.isInteger) };
    const { svg, left, top } = plot(width, x, y);
    for (const [bin, height] of bins) {
      const [from, to] = [left((bin - 0.5) * BIN) + 0.5, left((bin + 0.5) * BIN) - 0.5];
      const kind = bin < 0 ? "base" : bin > 0 ? "adapter" : "";
      const place = { x: from, y: top(height), width: Math.max(1, to - from), height: top(0) - top(height) };
      svg.append(draw("rect", { class: `bar ${kind}`, ...place }));
    }
    const place = { x1: left(mean), x2: left(mean), y1: MARGIN.top, y2: top(0) };
    svg.append(draw("line", { class: "mean", ...place }));
    const right = left(mean) > width * 0.6; // then its label is on the left of the line
    const kind = right ? "strong end" : "strong";
    const note = draw("text", { class: kind, x: left(mean) + (right ? -6 : 6), y: MARGIN.top + 9 });
    note.append(`mean ${difference(mean)}`);
    svg.append(note);
    const sides = `${counted(better.adapter, "row", "rows")} better, ${count(better.base)} worse after fine-tuning`;
    svg.setAttribute("aria-label", `Histogram of the gain of each row: ${sides}, mean ${difference(mean)}`);
    return svg;
  });
}

const REACH = 18; // pixels: the pointer selects the closest point within this distance

/** Both scores of each row over its reference's length. One path draws all points of a model, a dot for each move. */
function fillScatter() {
  const words = rows.map((row) => Math.max(1, wordsIn(row.reference).length));
  const [least, most] = [Math.min(...words), Math.max(Math.min(...words) + 1, ...words)];
  const part = (value) => Math.log(value / least) / Math.log(most / least);
  const marks = [1, 10, 100, 1000, 10000].flatMap((power) => [1, 1.5, 2, 3, 5, 7].map((n) => n * power));
  const inside = marks.filter((mark) => Number.isInteger(mark) && mark >= least && mark <= most);
  const every = Math.ceil(inside.length / 7);
  const axis = { part, ticks: inside.filter((_, n) => n % every === 0), title: "words in the reference" };
  const figure = byId("scatter");
  const hover = make("p", { class: "hover", dir: "auto" });
  figure.append(hover);
  keepDrawn(figure, (width) => {
    const { svg, left, top } = plot(width, axis, { low: 0, high: 1, ticks: SCORES.ticks });
    const shown = counted(rows.length, "row", "rows");
    svg.setAttribute("aria-label", `Scores of ${shown} over the number of words in their references`);
    for (const model of ["base", "adapter"]) {
      const dots = rows.map((row, n) => `M${left(words[n]).toFixed(1)} ${top(row[`${model}_rougeL`]).toFixed(1)}h0`);
      svg.append(draw("path", { class: `points ${model}`, d: dots.join("") }));
    }
    const rings = ["base", "adapter"].map(() => draw("circle", { class: "ring", r: "5", visibility: "hidden" }));
    svg.append(...rings);
    let closest = -1;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top].map((place) => (place * width) / box.width);
      let nearest = REACH;
      closest = -1;
      rows.forEach((row, n) => {
        for (const model of ["base", "adapter"]) {
          const away = Math.hypot(left(words[n]) - x, top(row[`${model}_rougeL`]) - y);
          if (away < nearest) [nearest, closest] = [away, n];
        }
      });
      svg.classList.toggle("over", closest >= 0);
      ["base", "adapter"].forEach((model, n) => {
        rings[n].setAttribute("visibility", closest < 0 ? "hidden" : "visible");
        if (closest < 0) return;
        rings[n].setAttribute("cx", left(words[closest]));
        rings[n].setAttribute("cy", top(rows[closest][`${model}_rougeL`]));
      });
      hover.textContent = closest < 0 ? "" : `${change(closest)}: ${visible(rows[closest].intent)}`;
    });
    svg.addEventListener("pointerleave", () => {
      closest = -1;
      hover.textContent = "";
      for (const ring of rings) ring.setAttribute("visibility", "hidden");
    });
    svg.addEventListener("click", () => closest >= 0 && browser.show(closest));
    return svg;
  });
}

const POINTS = 250; // of a curve: more than a chart has pixels for would only thicken the line

/** Means of neighbours: at most `POINTS` points. */
function thinned(points) {
  const size = Math.ceil(points.length / POINTS);
  const all = [];
  for (let start = 0; start < points.length; start += size) {
    const some = points.slice(start, start + size);
    all.push([0, 1].map((n) => some.reduce((sum, point) => sum + point[n], 0) / some.length));
  }
  return all;
}

const finitePoints = (points) => points.filter((point) => present(point[0]) && present(point[1]));

function fillLosses() {
  const [all, validation] = [finitePoints(content.train_loss), finitePoints(content.validation_loss)];
  const size = Math.ceil(all.length / POINTS);
  const keys = byId("losses").querySelector(".keys");
  if (all.length) {
    keys.append(make("span", { class: "key line" }, size > 1 ? `training, mean of ${size} steps` : "training"));
  }
  if (validation.length) {
    keys.append(make("span", { class: "key adapter" }, `validation, ${score(validation.at(-1)[1])} at the end`));
  }
  drawCurves("losses", thinned(all), validation, "Loss over the optimizer steps, in training and on the validation rows");
}

function fillAnswersCurve() {
  const points = finitePoints(content.validation_rouge_l);
  const key = make("span", { class: "key adapter" }, `${score(points.at(-1)[1])} at the end`);
  byId("answers-curve").querySelector(".keys").append(key);
  drawCurves("answers-curve", [], points, "ROUGE-L of answers to validation rows, over the optimizer steps");
}

/** Draw values over the optimizer steps: a line of training, and one with dots of validation. */
function drawCurves(id, train, validation, label) {
  const both = [...train, ...validation];
  keepDrawn(byId(id), (width) => {
    const steps = both.map((point) => point[0]);
    const highest = Math.max(...both.map((point) => point[1])) * 1.05 || 1;
    const [low, high] = [Math.min(0, ...steps), Math.max(1, ...steps)];
    const { svg, left, top } = plot(width, { low, high, ticks: ticks(low, high, 5), title: "optimizer step" },
      { low: 0, high: highest, ticks: ticks(0, highest, 5) });
    svg.setAttribute("aria-label", label);
    const line = (points) =>
      "M" + points.map(([step, value]) => `${left(step).toFixed(1)} ${top(value).toFixed(1)}`).join("L");
    if (train.length) svg.append(draw("path", { class: "curve train", d: line(train) }));
    if (validation.length) svg.append(draw("path", { class: "curve", d: line(validation) }));
    for (const [step, value] of validation.length <= 40 ? validation : []) {
      svg.append(draw("circle", { class: "dot adapter", cx: left(step), cy: top(value), r: "4" }));
    }
    return svg;
  });
}

// ---------------------------------------------------------------- words that answer and reference have in common

const MAX_CELLS = 4e6; // of the table below; two texts of 2,000 words each

const ALONE = "[\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}\\u30fc\\p{sc=Thai}\\p{sc=Lao}\\p{sc=Khmer}\\p{sc=Myanmar}]";
const LETTER = `(?:(?!${ALONE})[\\p{L}\\p{N}\\p{M}_])`;
// About the words that the run was scored with: runs of ASCII letters and digits, or words and characters of all scripts.
const WORD = content.tokenizer === "unicode"
  ? new RegExp(`${ALONE}\\p{M}*|${LETTER}+(?:(?:['\u2019.]|(?<=\\p{N}),(?=\\p{N}))${LETTER}+)*`, "gu")
  : /[a-zA-Z0-9]+/g;
const wordsIn = (text) => [...text.matchAll(WORD)];
const folded = (word) => word.normalize("NFKC").toLowerCase().replaceAll("\u2019", "'");

/** [start, end] in `answer` of the words of a longest common subsequence of both texts. */
function sharedWords(reference, answer) {
  const [ours, theirs] = [wordsIn(answer), wordsIn(reference)];
  const wide = theirs.length + 1;
  if ((ours.length + 1) * wide > MAX_CELLS) return [];
  const [our, their] = [ours, theirs].map((words) => words.map(([word]) => folded(word)));
  const same = (i, j) => our[i] === their[j];
  const longest = new Uint16Array((ours.length + 1) * wide); // of the words from i and from j on
  for (let i = ours.length - 1; i >= 0; i -= 1) {
    for (let j = theirs.length - 1; j >= 0; j -= 1) {
      longest[i * wide + j] = same(i, j)
        ? longest[(i + 1) * wide + j + 1] + 1
        : Math.max(longest[(i + 1) * wide + j], longest[i * wide + j + 1]);
    }
  }
  const spans = [];
  for (let i = 0, j = 0, last = -2; i < ours.length && j < theirs.length; ) {
    if (same(i, j)) {
      const [start, end] = [ours[i].index, ours[i].index + ours[i][0].length];
      // Neighbours in one line make one span, for fewer elements and a calmer picture.
      if (last === i - 1 && !answer.slice(spans.at(-1)[1], start).includes("\n")) spans.at(-1)[1] = end;
      else spans.push([start, end]);
      last = i;
      i += 1;
      j += 1;
    } else if (longest[(i + 1) * wide + j] >= longest[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return spans;
}

/** A paragraph with a text, its spans marked, and elements behind some of its lines (numbers from 1). */
function textOf(text, spans = [], behind = new Map()) {
  if (!text) return make("p", { class: "text empty" }, "(empty)");
  const paragraph = make("p", { class: "text", dir: "auto" });
  let end = 0;
  let line = 1;
  const upTo = (place) => {
    for (const part of text.slice(end, place).split(/(?=\n)/)) {
      if (part[0] === "\n") paragraph.append(...(behind.get(line++) ?? []));
      paragraph.append(visible(part));
    }
    end = place;
  };
  for (const [from, to] of spans) {
    upTo(from);
    paragraph.append(make("mark", {}, visible(text.slice(from, to))));
    end = to;
  }
  upTo(text.length);
  paragraph.append(...(behind.get(line) ?? []));
  return paragraph;
}

// ---------------------------------------------------------------- rows

const STOPS = { eos: "ended by itself", length: "cut at the token limit", too_long: "prompt too long for the model" };
const NO_CATEGORY = "(no category)";
const change = (n) => `${score(rows[n].base_rougeL)} \u2192 ${score(rows[n].adapter_rougeL)}`;
const gainOf = (n) => make("span", { class: `gain ${colourOf(gains[n])}` }, difference(gains[n]));
const oneLine = (text) => visible(text.replace(/\s+/g, " "));

const MODELS = { base: "base model", adapter: "fine-tuned" };

/** What is shown behind the lines of the reference (kind "") or of an answer: the steps that each of them matches. */
function stepsBehind(row, kind) {
  const behind = new Map();
  const put = (line, model, matched, unmatched) => {
    const text = matched ? `\u2192\u00a0${matched}` : unmatched;
    const name = make("span", { class: "unseen" }, `${MODELS[model]}: `);
    const note = make("span", { class: `step ${model}` }, name, text);
    behind.set(line, [...(behind.get(line) ?? []), " ", note]);
  };
  if (kind) {
    for (const [line, step] of row.steps?.[kind]?.matches ?? []) put(line, kind, step, "superfluous");
    return behind;
  }
  const lines = row.reference.split("\n").flatMap((text, line) => (text.trim() ? [line + 1] : [])); // each is a step
  for (const model of Object.keys(MODELS)) {
    const own = row.steps?.[model];
    if (!own || own.reference) continue;
    const place = new Map(own.matches.map(([, step], at) => [step, at + 1]));
    lines.forEach((line, at) => put(line, model, place.get(at + 1), "missing"));
  }
  return behind;
}

function aboutSteps({ coverage, order, superfluous, reference }) {
  const parts = [`covers ${percent(coverage)} of the steps`, present(order) && `order ${score(order)}`,
    present(superfluous) && `${percent(superfluous)} superfluous`, reference && `reference ${reference + 1}`];
  return parts.filter(Boolean).join(", ");
}

function detailOf(n, marking) {
  const row = rows[n];
  const answer = (kind, title, text, points, stop) => {
    const words = wordsIn(text).length;
    const steps = row.steps?.[kind];
    const about = [counted(words, "word", "words"), stop && (STOPS[stop] ?? visible(stop)), steps && aboutSteps(steps)]
      .filter(Boolean).join(", ");
    return make("section", { class: `answer ${kind}` },
      make("header", {},
        make("h4", {}, title),
        make("span", { class: "score" }, present(points) ? score(points) : ""),
      ),
      textOf(text, marking && kind ? sharedWords(row.reference, text) : [], stepsBehind(row, kind)),
      make("footer", {}, about),
    );
  };
  const turn = ({ role, content: said }) =>
    make("div", {}, make("p", { class: "about" }, visible(capital(role))), textOf(said));
  return [
    row.history
      ? make("section", { class: "context" },
        make("h4", {}, "Earlier turns"), make("div", { class: "long" }, ...row.history.map(turn)))
      : null,
    make("h3", { class: "intent", dir: "auto" }, row.intent ? visible(row.intent) : "(empty)"),
    make("p", { class: "about" },
      make("span", {}, visible(row.category || NO_CATEGORY)),
      row.source ? make("span", {}, "from ", visible(row.source)) : null,
      row.procedural ? make("span", {}, "asks for steps") : null,
      make("span", {}, "gain ", gainOf(n)),
      make("a", { href: `#row=${encodeURIComponent(row.id)}`, title: "Link to this row" }, visible(row.id)),
    ),
    row.context
      ? make("section", { class: "context" },
        make("h4", {}, "Context"), make("div", { class: "long" }, textOf(row.context)))
      : null,
    make("div", { class: "answers" },
      answer("", "Reference", row.reference),
      answer("base", "Base model", row.base, row.base_rougeL, row.base_stop),
      answer("adapter", "Fine-tuned", row.adapter, row.adapter_rougeL, row.adapter_stop),
    ),
  ].filter((part) => part !== null);
}

/** The list of rows, and the selected row. Only options in or near the visible part of the list are elements. */
class Browser {
  constructor() {
    this.section = byId("rows");
    this.list = byId("list");
    this.all = make("div", { class: "all", role: "presentation" }); // as high as all options together
    this.list.append(this.all);
    this.height = parseFloat(getComputedStyle(document.documentElement).fontSize) * 4; // --row in the style
    this.options = new Map(); // place in the list -> its element
    this.texts = null; // what the search looks through; made on the first search
    this.sort = { by: "file", reversed: false };
    this.order = rows.map((_, n) => n); // rows in the list
    this.place = 0; // of the selected row in the list
    this.fillCategories();
    this.listen();
    this.arrange();
    this.followHash();
  }

  fillCategories() {
    const sizes = new Map();
    for (const row of rows) sizes.set(row.category, (sizes.get(row.category) ?? 0) + 1);
    const select = byId("category");
    select.append(new Option("All categories", ""));
    for (const category of [...sizes.keys()].sort()) {
      // "=" before the name: a category without a name is not all categories.
      select.append(new Option(`${visible(category || NO_CATEGORY)} (${count(sizes.get(category))})`, `=${category}`));
    }
  }

  listen() {
    let waiting = false;
    this.list.addEventListener("scroll", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        this.render();
      });
    });
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.select(Number(option.dataset.place));
    });
    for (const button of this.section.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.sortBy(button.dataset.sort));
    }
    byId("category").addEventListener("change", () => this.arrange());
    byId("search").addEventListener("input", () => this.arrange());
    byId("marking").addEventListener("change", () => this.showDetail());
    document.addEventListener("keydown", (event) => this.press(event));
    window.addEventListener("hashchange", () => this.followHash());
    window.addEventListener("resize", () => this.render());
  }

  /** `score` sorts from the highest score; a second time, from the lowest. */
  sortBy(by) {
    this.sort = { by, reversed: by === "score" && this.sort.by === "score" && !this.sort.reversed };
    for (const button of this.section.querySelectorAll("[data-sort]")) {
      button.setAttribute("aria-pressed", String(button.dataset.sort === by));
    }
    const arrow = this.section.querySelector(".arrow");
    arrow.textContent = by !== "score" ? "" : this.sort.reversed ? "\u2191" : "\u2193";
    this.arrange();
    if (this.order.length) this.select(0);
  }

  /** Filter and sort again. The selected row stays selected if it is still in the list. */
  arrange() {
    const selected = this.order[this.place];
    const category = byId("category").value;
    const query = byId("search").value.trim().toLowerCase();
    if (query && !this.texts) {
      const parts = ["intent", "context", "reference", "base", "adapter", "id"];
      const turns = (row) => (row.history ?? []).map((turn) => turn.content);
      const textsOf = (row) => [...parts.map((part) => row[part] ?? ""), ...turns(row)];
      this.texts = rows.map((row) => textsOf(row).join("\n").toLowerCase());
    }
    const order = rows.map((_, n) => n).filter((n) =>
      (!category || category === `=${rows[n].category}`) && (!query || this.texts[n].includes(query)));
    const key = { best: (n) => -gains[n], worst: (n) => gains[n], score: (n) => -rows[n].adapter_rougeL }[this.sort.by];
    const turn = this.sort.reversed ? -1 : 1;
    if (key) order.sort((a, b) => turn * (key(a) - key(b)) || a - b);
    this.order = order;
    this.place = Math.max(0, order.indexOf(selected));
    byId("count").textContent = `${count(order.length)} of ${counted(rows.length, "row", "rows")}`;

    this.options.clear();
    this.all.replaceChildren();
    this.all.style.height = `${order.length * this.height}px`;
    if (!order.length) this.all.append(make("p", { class: "none" }, "No row matches."));
    this.scrollTo(this.place);
    this.render();
    this.showDetail();
  }

  /** Make the options that came into the visible part of the list, and remove those that left it. */
  render() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / this.height) - 4);
    const last = Math.min(this.order.length - 1, first + Math.ceil(this.list.clientHeight / this.height) + 8);
    const shown = new Set();
    for (let place = first; place <= last; place += 1) shown.add(place);
    // The selected option stays an element wherever it is, because aria-activedescendant points at it.
    if (this.order.length) shown.add(this.place);
    for (const [place, option] of this.options) {
      if (shown.has(place)) continue;
      option.remove();
      this.options.delete(place);
    }
    for (const place of shown) {
      if (!this.options.has(place)) this.options.set(place, this.all.appendChild(this.option(place)));
      this.options.get(place).setAttribute("aria-selected", String(place === this.place));
    }
    if (this.order.length) this.list.setAttribute("aria-activedescendant", `option-${this.place}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  option(place) {
    const n = this.order[place];
    const option = make("div", {
      role: "option", id: `option-${place}`, "data-place": place, "data-row": rows[n].id,
      "aria-setsize": this.order.length, "aria-posinset": place + 1,
    },
      make("div", { class: "intent", dir: "auto" }, titleOf(n)),
      make("div", { class: "scores" },
        make("span", { class: "category" }, visible(rows[n].category || NO_CATEGORY)),
        make("span", {}, change(n)),
        gainOf(n),
      ),
    );
    option.style.top = `${place * this.height}px`;
    return option;
  }

  scrollTo(place) {
    const top = place * this.height;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.list.scrollTop = top + this.height - clientHeight;
  }

  select(place) {
    if (!this.order.length) return;
    this.place = Math.min(this.order.length - 1, Math.max(0, place));
    this.scrollTo(this.place);
    this.render();
    this.showDetail();
    // Replaced, not pushed: going back leaves the page, without a stop at each row.
    history.replaceState(null, "", `#row=${encodeURIComponent(rows[this.order[this.place]].id)}`);
  }

  /** Select a row by its number, whatever the filters were, and bring it into view. */
  show(n) {
    if (!this.order.includes(n)) {
      byId("category").value = "";
      byId("search").value = "";
      this.arrange();
    }
    this.select(this.order.indexOf(n));
    this.section.scrollIntoView();
  }

  showDetail() {
    const detail = byId("detail");
    if (this.order.length) detail.replaceChildren(...detailOf(this.order[this.place], byId("marking").checked));
    else detail.replaceChildren();
    for (const box of detail.querySelectorAll(".long")) {
      if (box.scrollHeight > box.clientHeight) box.tabIndex = 0; // so that keys can scroll it
    }
  }

  followHash() {
    const match = /^#row=(.+)$/.exec(location.hash);
    if (!match) return;
    let id = match[1];
    try {
      id = decodeURIComponent(id);
    } catch {
      // Not an encoded id: it is looked up unchanged.
    }
    const n = rows.findIndex((row) => String(row.id) === id);
    if (n >= 0) this.show(n);
  }

  /** Give the list the focus; scroll the page only if the list is out of sight. */
  focus() {
    this.list.focus({ preventScroll: true });
    const { top, bottom } = this.list.getBoundingClientRect();
    if (top < 0 || top > 0.6 * innerHeight || bottom < 0.3 * innerHeight) this.section.scrollIntoView();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const { target, key } = event;
    const writing = target.matches("input:not([type=checkbox]), select, textarea");
    const within = this.section.contains(target);
    const page = Math.max(1, Math.floor(this.list.clientHeight / this.height) - 1);
    const move = (by) => this.select(this.place + by);
    // Anywhere on the page except in text fields. The checkbox is for people whose voice input types single letters.
    const letters = {
      j: () => move(1),
      k: () => move(-1),
      g: () => this.sortBy("best"),
      w: () => this.sortBy("worst"),
    };
    const arrows = { ArrowDown: () => move(1), ArrowUp: () => move(-1) };
    const inList = {
      Home: () => this.select(0),
      End: () => this.select(this.order.length - 1),
      PageDown: () => move(page),
      PageUp: () => move(-page),
    };
    let act = null;
    if (!writing && byId("shortcuts").checked) {
      if (key === "/") {
        event.preventDefault();
        byId("search").focus();
        byId("search").select();
        return;
      }
      act = Object.hasOwn(letters, key) ? letters[key] : null;
    }
    // A long context scrolls by the arrow keys itself.
    if (within && !writing && !target.closest(".context")) act ??= arrows[key];
    if (target === this.list) act ??= inList[key];
    // From the search field into its results.
    if (target === byId("search") && (key === "ArrowDown" || key === "Enter")) act = () => this.select(this.place);
    if (!act) return;
    event.preventDefault();
    act();
    this.focus();
  }
}

const titleOf = (n) => (rows[n].intent ? oneLine(rows[n].intent) : "(empty)");

// ---------------------------------------------------------------- the page

function fillFacts() {
  for (const [name, value] of Object.entries(content.facts)) {
    byId("facts").append(make("div", {}, make("dt", {}, visible(name)), make("dd", {}, visible(value))));
  }
}

/** Hide a section or figure that has nothing to show, and the link to it. */
function keepIf(id, full) {
  byId(id).hidden = !full;
  const link = document.querySelector(`nav a[href="#${id}"]`);
  if (link) link.hidden = !full;
}

document.title = visible(content.title);
byId("title").append(visible(content.title));
byId("verdict").append(visible(content.verdict));
byId("cost").append(visible(content.cost));
fillScores();
fillSteps();
fillMeasures();
fillSlices();
fillElsewhere();
fillChat();
fillFacts();

const losses = content.train_loss.length + content.validation_loss.length > 0;
keepIf("slices", content.slices.length > 0);
keepIf("elsewhere", byId("cost-table").tBodies[0].rows.length > 0);
byId("chat").hidden = !content.chat.length;
byId("cost").hidden = !content.cost;
keepIf("charts", rows.length > 0 || losses);
for (const id of ["histogram", "scatter"]) keepIf(id, rows.length > 0);
keepIf("losses", losses);
keepIf("answers-curve", content.validation_rouge_l.length > 0);
keepIf("rows", rows.length > 0);
document.querySelector("body > footer").hidden = !Object.keys(content.facts).length;

byId("rows-lead").hidden = !(metrics.seeds > 1);

if (losses) fillLosses();
if (content.validation_rouge_l.length > 0) fillAnswersCurve();
if (rows.length) {
  fillHistogram();
  fillScatter();
}
const browser = rows.length ? new Browser() : null;
