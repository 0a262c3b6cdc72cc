"""The numbers of README and docs, and the map of the code: `make docs-numbers`.

A page has its numbers between two comments, `<!-- numbers: NAME -->` and `<!-- /numbers -->`.
Nobody types there: this writes them, from the files in docs/results/, and a test compares. The map
of the code is made of the first line of each module. It needs nothing but Python.

    python docs/fill_numbers.py                          # write the pages anew
    python docs/fill_numbers.py results results --data "ISIC 2016" --machine "two cores of a ..."
    python docs/fill_numbers.py table accuracy.val measured.md --machine "two cores of a ..."
    python docs/fill_numbers.py speed results/benchmarks.json
    python docs/fill_numbers.py curve results/curve --data "ISIC 2016" --machine "two cores ..."

`results` takes over a run: results/evaluate/ and, where there is one, results/ablation.csv.
`speed` takes over what `python -m benchmarks` has written, for this kind of processor; `make bench`
does so. `curve` takes over what `lesionseg curve` has written.
`table` takes over a table in Markdown, such as a command prints.
"""

import argparse
import ast
import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "docs/results"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(<!-- numbers: (\S+) -->)(.*?)(<!-- /numbers -->)", re.DOTALL)
FROZEN, TUNED = RUNS = ("train_frozen", "train_finetuned")
LABELS = {FROZEN: "frozen", TUNED: "fine-tuned"}
METRICS = {
    "jaccard": "jaccard",
    "dice": "dice",
    "threshold_jaccard": "threshold jaccard",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "hd95": "hd95, % of the diagonal",
    "nsd": "nsd at 1 %",
}
ABLATED = ("val_jaccard", "test_jaccard", "test_dice")
Json = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Take over what the command line names, then write all pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("results", help="take over a run")
    run.add_argument("folder", type=Path, help="such as results")
    run.add_argument("--data", required=True, help="what the images are, in words")
    table = commands.add_parser("table", help="take over a table in Markdown")
    table.add_argument("name", help="of one that is there, such as accuracy.val")
    table.add_argument("file", type=Path)
    table.add_argument("--commit", default="", help="of the code that was measured")
    curve = commands.add_parser("curve", help="take over a learning curve")
    curve.add_argument("folder", type=Path, help="such as results/curve")
    curve.add_argument("--data", required=True, help="what the images are, in words")
    speed = commands.add_parser("speed", help="take over benchmarks")
    speed.add_argument("file", type=Path, help="such as results/benchmarks.json")
    for command in (run, table, curve):
        command.add_argument("--machine", required=True, help="the processor, in words")
        command.add_argument("--date", default=date.today().isoformat())
    arguments = parser.parse_args(argv)
    if arguments.command == "results":
        take_results(arguments)
    elif arguments.command == "table":
        take_table(arguments)
    elif arguments.command == "speed":
        take_speed(arguments)
    elif arguments.command == "curve":
        take_curve(arguments)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := fill(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"wrote the numbers of {page.relative_to(ROOT)}\n")


def fill(text: str) -> str:
    """A page with its numbers.

    Raises:
        KeyError: It names numbers that nobody can write.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{numbers(found[2], found[3])}{found[4]}", text)


def numbers(name: str, old: str) -> str:
    """What stands between the two comments: a paragraph of its own where it was one before."""
    kind, _, rest = name.partition(":")
    text = RENDERERS[kind](rest) if rest else RENDERERS[kind]()
    return f"\n\n{text}\n\n" if old.startswith("\n") else text


def read(name: str) -> Json:
    """A file of docs/results/."""
    content: Json = json.loads((STORE / f"{name}.json").read_text(encoding="utf-8"))
    return content


def write(name: str, content: Json) -> None:
    """Write a file of docs/results/."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Lists of a few values in one line, so that a change shows as one.
    text = re.sub(r"\[\s+([^\[\]{}]{,300}?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    (STORE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


# --- what is taken over


def take_results(arguments: argparse.Namespace) -> None:
    """Make answer.json from a run's results, and ablation.json where there is an ablation."""
    folder = arguments.folder / "evaluate"
    comparison = json.loads((folder / "comparison.json").read_text())
    record = json.loads((arguments.folder / TUNED / "run.json").read_text())
    scores = {run: json.loads((folder / f"{run}.json").read_text()) for run in RUNS}
    about = {
        "date": arguments.date,
        "commit": record["commit"],
        "data": arguments.data,
        "machine": f"{arguments.machine}, {record['precision']}",
        "source": f"results/ of a run with {record['params']['model.decoder']}",
    }
    write(
        "answer",
        {
            "about": about,
            "num_images": comparison["num_images"],
            "confidence": comparison["confidence"],
            "test": {name: comparison["test"][name] for name in METRICS},
            "own_size": {run: comparison["test_own_size"]["jaccard"][run] for run in RUNS},
            "failures": {
                run: round(scores[run]["test"]["failure_rate"] * comparison["num_images"])
                for run in RUNS
            },
            "limits": comparison["limits"],
            "external": {
                path.parent.name: {"num_images": other["num_images"], **other["test"]["jaccard"]}
                for path in sorted(folder.glob("external/*/comparison.json"))
                for other in [json.loads(path.read_text())]
            },
            "seeds": comparison["seeds"]
            and {
                "num_seeds": comparison["seeds"]["num_seeds"],
                **{name: comparison["seeds"]["test"][name] for name in ("jaccard", "dice")},
            },
            "outline": [
                row
                for row in rows_of(folder / "strata.csv")
                if row["stratum"] == "outline" and row["group"] != "unknown"
            ],
            "variants": [row for row in rows_of(folder / "variants.csv") if row["scope"] == "test"],
        },
    )
    if (arguments.folder / "ablation.csv").exists():
        take_ablation(arguments.folder / "ablation.csv", about)


def take_ablation(path: Path, about: Json) -> None:
    """Make ablation.json from the values of every seed; what each entry changes stays as it was."""
    old = {row["name"]: row for row in read("ablation")["rows"]}
    scores: dict[tuple[str, str], dict[int, Json]] = {}
    for row in rows_of(path):
        scores.setdefault((row["name"], row["run"]), {})[int(row["seed"])] = row
    entries = []
    for name in dict.fromkeys(name for name, _ in scores):
        known = old.get(name, {})
        entry = {"name": name, "what": known.get("what", ""), "base": known.get("base", "")}
        for run in RUNS:
            own, base = scores[name, run], scores.get((entry["base"], run), {})
            entry[run] = {
                **{key: mean_sd([row[key] for row in own.values()]) for key in ABLATED},
                "to_base": mean_sd(differences(own, base, "test_jaccard")),
                "seconds": round(min(row["seconds"] for row in own.values())),
            }
        both = scores[name, TUNED], scores[name, FROZEN]
        entry["difference"] = {
            metric: mean_sd(differences(*both, f"test_{metric}")) for metric in ("jaccard", "dice")
        }
        entries.append(entry)
    write("ablation", {"about": {**about, "source": path.name}, "rows": entries})


def take_table(arguments: argparse.Namespace) -> None:
    """Put a table in Markdown in the place of one of tables.json."""
    tables = read("tables")
    if arguments.name not in tables:
        sys.exit(f"error: no table is called {arguments.name}; there are {', '.join(tables)}")
    lines = [line for line in arguments.file.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    about = {key: getattr(arguments, key) for key in ("date", "commit", "machine")}
    tables[arguments.name] = {
        "about": {**about, "source": "a table that a command printed"},
        "columns": cells[0],
        "align": cells[1],
        "rows": cells[2:],
    }
    write("tables", tables)


def take_speed(arguments: argparse.Namespace) -> None:
    """Put a machine's benchmarks in the place of the last ones of its kind, suite by suite."""
    measured = json.loads(arguments.file.read_text())
    kinds, kind = read("speed"), measured["machine"]["kind"]
    for suite, paragraphs in measured["pages"].items():
        kinds.setdefault(kind, {})[suite] = {
            "about": measured["heading"].strip(),
            "paragraphs": paragraphs,
        }
    write("speed", kinds)


def take_curve(arguments: argparse.Namespace) -> None:
    """Copy a curve's figure, table and text, and its record with what it is about."""
    names = ("curve.json", "curve.csv", "curve.md", "curve.svg")
    for name in names:
        if not (arguments.folder / name).is_file():
            sys.exit(f"error: {arguments.folder} has no {name}. Run: lesionseg curve")
    curve = json.loads((arguments.folder / names[0]).read_text())
    setting = curve["setting"]
    about = {
        "date": arguments.date,
        "commit": curve["commit"],
        "data": arguments.data,
        "machine": f"{arguments.machine}, {setting['precision']} on {setting['device']}",
        "source": "lesionseg curve",
    }
    write("curve", {"about": about, **curve})
    for name in names[1:]:
        shutil.copyfile(arguments.folder / name, STORE / name)


def rows_of(path: Path) -> list[Json]:
    """The rows of a CSV file, numbers as numbers."""
    with path.open(encoding="utf-8") as stream:
        return [
            {key: number(value) for key, value in row.items()} for row in csv.DictReader(stream)
        ]


def number(text: str) -> Any:
    """A number where the text is one, nothing where it is empty."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def differences(ours: Mapping[int, Json], others: Mapping[int, Json], key: str) -> list[float]:
    """Of one value, in each seed that both have."""
    return [row[key] - others[seed][key] for seed, row in ours.items() if seed in others]


def mean_sd(values: Sequence[float]) -> list[float | None] | None:
    """Mean and standard deviation of the sample; None for the latter of one value, or for none."""
    return [fmean(values), stdev(values) if len(values) > 1 else None] if values else None


# --- what is written


def answer() -> str:
    """The project's question, answered in one sentence."""
    content = read("answer")
    row = content["test"]["jaccard"]
    low, high = row["interval"]
    seeds = content["seeds"]
    again = ""
    if seeds:
        difference = seeds["jaccard"]["difference"]
        again = (
            f" Over {seeds['num_seeds']} trainings of each with different random numbers it is "
            f"{spread(difference['mean'], difference['sd'], sign='+')} (mean and standard "
            "deviation)."
        )
    verb = "raises" if low > 0 else "lowers" if high < 0 else "does not clearly change"
    return (
        f"**Fine-tuning {verb} the mean Jaccard index on {content['num_images']} test images: "
        f"{row[FROZEN]:.3f} frozen, {row[TUNED]:.3f} fine-tuned, a difference of "
        f"{row['difference']:+.3f}** ({100 * content['confidence']:g} % interval {low:+.3f} to "
        f"{high:+.3f}).{again}"
    )


def about(name: str) -> str:
    """When and on what the numbers of a file, or of a table of tables.json, were measured."""
    file, _, table = name.partition("/")
    facts = (read(file)[table] if table else read(file))["about"]
    commit = f" at commit `{facts['commit']}`" if facts["commit"] else ""
    data = f", {facts['data']}" if facts.get("data") else ""
    return (
        f"Measured on {facts['date']}{commit}{data}; {facts['machine']}. Source: {facts['source']}."
    )


def minutes() -> str:
    """What the two commands cost."""
    times = read("times")
    packages, demo = times["setup"], times["demo_minutes"]
    return (
        f"That takes {packages['uv']['seconds']} seconds with [uv](https://docs.astral.sh/uv/) or "
        f"{packages['pip']['seconds'] / 60:.1f} minutes with pip, and up to "
        f"{packages['pip']['mb']:,} MB; the demo then takes {demo} minutes on two cores."
    )


def metrics() -> str:
    """Both models on test, metric by metric."""
    content = read("answer")
    heading = [
        "on test",
        "frozen",
        "fine-tuned",
        "difference",
        "Wilcoxon p",
        "wins / ties / losses",
    ]
    rows = []
    for name, row in content["test"].items():
        digits = 2 if name == "hd95" else 3
        means = [
            f"{row[run]:.{digits}f} ({between(row[f'{run}_interval'], digits)})" for run in RUNS
        ]
        difference = (
            f"{row['difference']:+.{digits}f} ({between(row['interval'], digits, sign='+')})"
        )
        p = row["wilcoxon_p"]
        p = p if isinstance(p, str) else "< 0.001" if p < 0.001 else f"{p:.3f}"
        counts = f"{row['wins']} / {row['ties']} / {row['losses']}"
        rows.append([METRICS[name], *means, difference, p, counts])
    return table_of(heading, rows)


def beside() -> str:
    """Failures, own size and limits, in sentences."""
    content = read("answer")
    failed, own, limits = content["failures"], content["own_size"], content["limits"]
    return (
        f"Images with a jaccard below 0.65: {failed[FROZEN]} of {content['num_images']} frozen, "
        f"{failed[TUNED]} fine-tuned. At the images' own size the jaccards are {own[FROZEN]:.3f} "
        f"and {own[TUNED]:.3f}. For scale: the true mask itself, drawn at the network's size, has "
        f"a jaccard of {limits['perfect_own_size']:.3f} there, and with one pixel more or less all "
        f"around {limits['pixel_larger']:.3f} or {limits['pixel_smaller']:.3f}."
    )


def external() -> str:
    """The jaccard on each external test set."""
    sets = read("answer").get("external")
    if not sets:
        return "This run had none."
    rows = [
        [
            f"`{name}`",
            f"{row['num_images']}",
            *(f"{row[run]:.3f} ({between(row[f'{run}_interval'], 3)})" for run in RUNS),
            f"{row['difference']:+.3f}{interval_of(row['interval'])}",
        ]
        for name, row in sets.items()
    ]
    return table_of(["jaccard on", "images", "frozen", "fine-tuned", "difference"], rows)


def outline() -> str:
    """The difference in each group of true outlines."""
    rows = []
    for row in read("answer")["outline"]:
        ends = [row["difference_low"], row["difference_high"]]
        text = f"{row['difference']:+.3f}{interval_of(None if None in ends else ends)}"
        rows.append([str(row["group"]), f"{row['num_images']:.0f}", text])
    return table_of(["true outline", "images", "difference in jaccard"], rows)


def variants() -> str:
    """Other ways to predict."""
    cells: dict[str, dict[str, Json]] = {}
    for row in read("answer")["variants"]:
        cells.setdefault(row["variant"], {})[row["run"]] = row
    rows = [
        [
            f"`{name}`",
            f"{by_run[TUNED]['num_models']:.0f}",
            f"{by_run[TUNED]['num_views']:.0f}",
            *(f"{by_run[run]['jaccard']:.3f}, {by_run[run]['dice']:.3f}" for run in RUNS),
        ]
        for name, by_run in cells.items()
    ]
    return table_of(["", "models", "views", "frozen", "fine-tuned"], rows)


def decoders(names: str) -> str:
    """Frozen and fine-tuned beside each other for entries of the ablation."""
    rows = []
    for name in names.split(","):
        entry = ablated(name)
        for run in RUNS:
            own = entry[run]
            scores = [spread(*own[key]) for key in ("test_jaccard", "test_dice", "val_jaccard")]
            changed = "" if entry["what"] == "nothing" else f": {entry['what']}"
            what = f"`{name}`{changed}" if run == FROZEN else ""
            rows.append([what, LABELS[run], *scores, f"{own['seconds']} s"])
        differences = [
            spread(*entry["difference"][metric], sign="+")
            + interval_of(entry.get("interval", {}).get(metric))
            for metric in ("jaccard", "dice")
        ]
        rows.append(["", "difference", f"**{differences[0]}**", differences[1], "", ""])
    return table_of(["", "", "jaccard", "dice", "val jaccard", "training"], rows, texts=2)


def ablation(run: str) -> str:
    """Every entry of the ablation for one model."""
    heading = ["", "base", "what it changes", "val jaccard", "test jaccard", "test dice"]
    rows = []
    for entry in read("ablation")["rows"]:
        own = entry[run]
        to_base = spread(*own["to_base"], sign="+") if own["to_base"] else ""
        scores = [spread(*own[key]) for key in ABLATED]
        seconds = f"{own['seconds']}" if own["seconds"] else ""
        base = f"`{entry['base']}`" if entry["base"] else ""
        rows.append([f"`{entry['name']}`", base, entry["what"], *scores, to_base, seconds])
    return table_of([*heading, "test jaccard - base's", "training, s"], rows, texts=3)


def score(key: str) -> str:
    """One mean of the ablation: `default,train_frozen,val_jaccard`."""
    name, model, column = key.split(",")
    return spread(*ablated(name)[model][column], sign="+" if model == "difference" else "")


def ablated(name: str) -> Json:
    """An entry of the ablation."""
    entry: Json = next(row for row in read("ablation")["rows"] if row["name"] == name)
    return entry


def changes() -> str:
    """Whether a single change to `plain` is better than it, in one sentence."""
    plain = ablated("plain")
    rows = [(row, run) for row in read("ablation")["rows"] for run in RUNS]
    single = [(row, run) for row, run in rows if row["base"] == "plain"]
    better = [
        f"`{row['name']}` ({LABELS[run]})"
        for row, run in single
        if row[run]["val_jaccard"][0] > plain[run]["val_jaccard"][0]
    ]
    gain = max(row[run]["to_base"][0] for row, run in single)
    return (
        "Single changes to `plain` that are better than it on val, to three digits: "
        f"{', '.join(better) or 'none'}. The largest gain on test is {gain:+.3f}."
    )


def hours() -> str:
    """How long the whole ablation trains: three seeds of both models."""
    seconds = [row[run]["seconds"] for row in read("ablation")["rows"] for run in RUNS]
    known = [one for one in seconds if one]
    return f"{3 * fmean(known) * len(seconds) / 3600:.1f} hours"


def views() -> str:
    """What eight views bring to each model."""
    jaccards = {(row["variant"], row["run"]): row["jaccard"] for row in read("answer")["variants"]}
    if ("tta", TUNED) not in jaccards:
        return "Eight views were not scored in this run (`evaluate.tta_views`)."
    gains = {run: jaccards["tta", run] - jaccards["single", run] for run in RUNS}
    return (
        f"Eight views change the jaccard of the frozen model by {gains[FROZEN]:+.3f}, and of the "
        f"fine-tuned one by {gains[TUNED]:+.3f}."
    )


def limit(name: str) -> str:
    """One of the limits of comparison.json, a jaccard."""
    return f"{read('answer')['limits'][name]:.3f}"


def curve() -> str:
    """The learning curve: its figure, then its tables and sentences as `lesionseg curve` has them.

    Until one is taken over, how to do that.
    """
    if not (STORE / "curve.json").exists():
        return "*Not measured yet: see [Renew the numbers](#renew-the-numbers).*"
    figure = "![Jaccard against the number of training images](results/curve.svg)"
    text = (STORE / "curve.md").read_text(encoding="utf-8").rstrip()
    files = ", ".join(f"[{name}](results/{name})" for name in ("curve.csv", "curve.json"))
    return f"{figure}\n\n{text}\n\n{about('curve')} All of it: {files}."


def curve_table() -> str:
    """The learning curve in one table: both means and their difference on each set, by size."""
    sets = read("curve")["sets"]
    heading = ["training images"]
    for one in sets:
        heading += [f"{one['name']}: frozen, fine-tuned", "difference"]
    rows = []
    for points in zip(*(one["points"] for one in sets), strict=True):
        row = [str(points[0]["num_images"])]
        for point in points:
            means = ", ".join(f"{point[run]['mean']:.3f}" for run in RUNS)
            difference = point["difference"]
            row += [means, f"{difference['mean']:+.3f}{interval_of(difference['interval'])}"]
        rows.append(row)
    return table_of(heading, rows)


def speed(suite: str) -> str:
    """A suite of the benchmarks on each kind of processor that has run it."""
    parts = []
    for suites in read("speed").values():
        if suite in suites:
            parts += [f"*{suites[suite]['about']}*", *suites[suite]["paragraphs"]]
    return "\n\n".join(parts) or "*Not measured yet.*"


def modules(folder: str) -> str:
    """What each module of a folder, and of those in it, says in its first line."""
    rows = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if said:
            first = said.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            rows.append([f"`{path.relative_to(ROOT / folder).as_posix()}`", first])
    return lines_of([["file", "what it is"], ["---", "---"], *rows])


def exported(kind: str) -> str:
    """What exported files give beside torch: `onnx`, `page`, or the `versions` of all."""
    content = read("export")
    return {"onnx": of_onnx, "page": of_page, "versions": of_versions}[kind](content)


def of_onnx(content: Json) -> str:
    """A row for each precision."""
    rows = []
    for name, found in content["onnx"].items():
        cells = ["refused by the gate", *[""] * len(AGREEMENT)]
        if "refused" not in found:
            cells = [f"{found['megabytes']:.1f}", *agreement(found["agreement"])]
        rows.append([f"`{name}`", *cells])
    return table_of(["`--precision`", "MB", *AGREEMENT], rows)


def of_page(content: Json) -> str:
    """A row for each precision and size of images."""
    rows = []
    for name, found in content["page"].items():
        for size, row in found["images"].items():
            images = f"{row['num_images']} JPEGs, {size}"
            cells = [f"`{name}`", f"{found['megabytes']:.1f}", images, *agreement(row)]
            rows.append([*cells, f"{row['milliseconds']:.0f}"])
    return table_of(["`--precision`", "MB", "images", *AGREEMENT, "ms an image"], rows)


def of_versions(content: Json) -> str:
    """What was used, in one sentence."""
    names = [f"{name} {version}" for name, version in content["versions"].items()]
    return f"Versions: {', '.join(names)}."


AGREEMENT = ("pixels that differ", "most in an image", "jaccard, mean", "jaccard, least")


def agreement(row: Json) -> list[str]:
    """Cells for how much two sets of masks have in common."""
    return [
        f"{row['differing']:,} of {row['num_pixels']:,}",
        f"{row['at_most']:,}",
        f"{row['jaccard']:.5f}",
        f"{row['least_jaccard']:.5f}",
    ]


def recipe(name: str) -> str:
    """The commands of a recipe and what they printed, as a terminal shows them."""
    shown = [
        f"$ {one['command']}\n{one['output']}".rstrip() for one in read("recipes")[name]["commands"]
    ]
    return "\n".join(["```console", *shown, "```"])


def output(name: str) -> str:
    """What a recipe printed whose commands the page has before it."""
    printed = [one["output"] for one in read("recipes")[name]["commands"]]
    return "\n".join(["```text", *printed, "```"])


def ran(page: str) -> str:
    """When and on what the recipes of a page ran, and how long each took."""
    found = [one for name, one in read("recipes").items() if name.startswith(f"{page}.")]
    loads = [load for one in found for load in one["load_average"]]
    sentences = dict.fromkeys(
        f"Run on {one['date']} at commit `{one['commit']:.7}`; {one['machine']}" for one in found
    )
    seconds = sorted(one["seconds"] for one in found)
    return (
        f"{'. '.join(sentences)}, load average {min(loads):.0f} to {max(loads):.0f}; "
        f"{seconds[0]:.0f} to {seconds[-1]:.0f} seconds each."
    )


def seconds(name: str) -> str:
    """How long a recipe took."""
    return f"{read('recipes')[name]['seconds']:.0f} s"


def code(place: str) -> str:
    """A number that the code has under a name: `src/lesionseg/cli.py,NUM_SHOWN`.

    A third part is the unit to give it in: `1e6` for a million.

    Raises:
        KeyError: The file has no such name with a number.
    """
    path, name, *unit = place.split(",")
    values = {}
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            values |= {
                one.id: value.value
                for one, value in pairs
                if isinstance(one, ast.Name) and isinstance(value, ast.Constant)
            }
    return f"{values[name] / float(unit[0] if unit else 1):g}"


def setup() -> str:
    """What setting up costs, with each program."""
    labels = {"uv": "uv", "uv_again": "uv, a second time from its cache", "pip": "pip"}
    rows = [
        [labels[name], f"{row['seconds']}", f"{row['mb']:,}"]
        for name, row in read("times")["setup"].items()
    ]
    return table_of(["", "seconds", "MB in `.venv`"], rows)


def disk(build: str) -> str:
    """What `.venv` takes with a build of torch, `cpu` or `cuda`."""
    return f"{read('times')['disk_gb'][build]} GB"


def assumed(name: str) -> str:
    """What a trial is taken to cost, of which `at_scale` is computed."""
    return f"{read('scale')[name]}"


def at_scale() -> str:
    """What trials cost together, on one node and on many: computed, not run."""
    one = read("scale")
    cases, seconds = one["cases"], 60 * one["minutes"]
    samples = seconds / float(code("src/lesionseg/tracking/handle.py,_SAMPLING_SECONDS"))
    rows = [
        [
            "into DVC's remote, models",
            *(f"{rounded(n * one['trial_mb'] / 1000, 2)} GB" for _, _, n in cases),
        ],
        [
            f"out of DVC's remote, data of {one['data_mb']} MB, once a node",
            *(f"{rounded(nodes * one['data_mb'] / 1000, 2)} GB" for _, nodes, _ in cases),
        ],
        ["references in Git", *(f"{n:,}" for _, _, n in cases)],
        [
            "requests to MLflow a second, samples included",
            *(rounded(nodes * (one["requests"] + samples) / seconds, 1) for _, nodes, _ in cases),
        ],
        [
            f"entries of the run cache that the last trial lists, {one['cache_entries']} a trial",
            *(f"{n * one['cache_entries']:,}" for _, _, n in cases),
        ],
        [
            "trials that start at once, all fetching from Git",
            *(f"{nodes}" for _, nodes, _ in cases),
        ],
    ]
    return table_of(["", *(f"{name}, {n:,} trials" for name, _, n in cases)], rows)


def rounded(value: float, digits: int) -> str:
    """To so many digits, as estimates are."""
    return f"{float(f'{value:.{digits}g}'):g}"


def demo() -> str:
    """The models of `make demo`, and the processors that have trained them."""
    known = read("demo")
    labels = {"train_frozen": "frozen", "train_finetuned": "fine-tuned"}
    rows = [(labels[run], f"`{digest}`") for run, digest in known["models"].items()]
    seen = "; ".join(known["seen_on"])
    lines = table_of(("model", "SHA-256"), rows, texts=2)
    return f"{lines}\n\nTorch {known['torch']}. Seen on: {seen}."


def table(name: str) -> str:
    """A table of tables.json as it is."""
    content = read("tables")[name]
    return lines_of([content["columns"], content["align"], *content["rows"]])


def table_of(heading: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table whose first columns are text and the others numbers."""
    align = ["---"] * texts + ["---:"] * (len(heading) - texts)
    return lines_of([heading, align, *rows])


def lines_of(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as Markdown."""
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(row)} |") for row in rows)


def spread(mean: float, sd: float | None, *, sign: str = "") -> str:
    """A mean with its standard deviation, if it has one."""
    return f"{mean:{sign}.3f}" + ("" if sd is None else f" ±{sd:.3f}")


def between(interval: Sequence[float], digits: int, *, sign: str = "") -> str:
    """An interval in words."""
    low, high = interval
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def interval_of(interval: Sequence[float] | None) -> str:
    """An interval in brackets, or nothing."""
    return f" ({between(interval, 3, sign='+')})" if interval else ""


RENDERERS: Mapping[str, Callable[..., str]] = {
    "answer": answer,
    "about": about,
    "minutes": minutes,
    "metrics": metrics,
    "beside": beside,
    "external": external,
    "outline": outline,
    "variants": variants,
    "decoders": decoders,
    "ablation": ablation,
    "score": score,
    "changes": changes,
    "hours": hours,
    "views": views,
    "limit": limit,
    "curve": curve,
    "curve_table": curve_table,
    "modules": modules,
    "export": exported,
    "recipe": recipe,
    "output": output,
    "ran": ran,
    "seconds": seconds,
    "code": code,
    "setup": setup,
    "disk": disk,
    "assumed": assumed,
    "at_scale": at_scale,
    "demo": demo,
    "speed": speed,
    "table": table,
}

if __name__ == "__main__":
    main()
