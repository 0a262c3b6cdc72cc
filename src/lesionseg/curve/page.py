"""The page of a learning curve: one HTML file that needs nothing else, and its figure as SVG."""

from importlib import resources
from pathlib import Path

from markupsafe import Markup

from lesionseg.curve import text
from lesionseg.curve.figure import draw_curve
from lesionseg.curve.record import Curve
from lesionseg.files import write_bytes
from lesionseg.report.figures import inline_svg, render_svg
from lesionseg.templates import load_template


def write_page(folder: Path, curve: Curve) -> None:
    """Write curve.html, and curve.svg for papers and other pages."""
    write_bytes(folder / "curve.svg", render_svg(draw_curve(curve)).encode())
    write_bytes(folder / "curve.html", render_page(curve).encode())


def render_page(curve: Curve) -> str:
    """The page as HTML text."""
    css = resources.files("lesionseg.report").joinpath("page.css").read_text(encoding="utf-8")
    names = [one.name for one in curve.sets]
    svgs = {name: render_svg(draw_curve(curve, names=[name])) for name in names}
    return load_template("lesionseg.curve", "page.html").render(
        style=Markup(css),
        curve=curve,
        svgs={name: inline_svg(f"set-{row}", svgs[name]) for row, name in enumerate(names)},
        description=text.describe(curve),
        confidence=f"{100 * curve.confidence:g} %",
        titles={one.name: text.title(one) for one in curve.sets},
        sentences={one.name: text.sentences(one, curve) for one in curve.sets},
        headings=text.HEADINGS,
        rows={one.name: [text.cells(point, curve) for point in one.points] for one in curve.sets},
        command=_command(curve),
    )


def _command(curve: Curve) -> str:
    """The command that reproduces this curve, at its commit and with its params.yaml."""
    sizes = ",".join(str(point.num_images) for point in curve.sets[0].points)
    settings = "".join(f" --set {name}={value}" for name, value in curve.changed.items())
    return f"lesionseg curve --sizes {sizes} --seeds {len(curve.seeds)}{settings}"
