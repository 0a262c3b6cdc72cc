"""segment.html in a real browser: the masks of `lesionseg predict`, and nothing else goes out."""

import asyncio
import base64
import io
import os
import re
import shutil
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionseg.cli import main
from lesionseg.data.phantom import draw_phantom
from lesionseg.errors import ExportError
from lesionseg.export import graph, runtime
from lesionseg.files import sha256
from lesionseg.inference.predictor import Predictor
from lesionseg.models.segmenter import load_model
from tests.test_segment_functions import normal
from tests.trained_results import IMAGE_SIZE, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

onnx = pytest.importorskip("onnx", reason="needs: pip install -e '.[export]'")
READY = "html.ready"
WAIT = 120_000  # milliseconds: the machine may have much else to do
DESKTOP = {"width": 1280, "height": 900}
EXIF_ORIENTATION = 0x0112
ROUNDING = 1e-5  # of probabilities, where sums are taken in another order


def save(pixels, path, *, orientation=1, **options):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of any size: lossless ones, and small JPEGs turned in each way that EXIF knows."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(64, 64), (151, 97), (300, 90), (90, 300), (40, 31)]
    for seed, size in enumerate(sizes):
        pixels = np.asarray(Image.fromarray(draw_phantom(size=200, seed=seed)[0]).resize(size))
        Image.fromarray(pixels).save(folder / f"plain{seed}.png")
    for orientation in range(1, 9):
        pixels, _ = draw_phantom(size=120, seed=orientation)
        path = folder / f"turned{orientation}.jpg"
        save(pixels[:70, :117], path, orientation=orientation, quality=95, subsampling=0)
    Image.fromarray(pixels).convert("L").save(folder / "grey.png")
    return folder


@pytest.fixture(scope="module")
def engine():
    """The runtime, fetched into the user's cache where it is not there yet."""
    try:
        return runtime.load_runtime()
    except ExportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, encoder_state):
    root = tmp_path_factory.mktemp("project")
    write_run(root, "train_finetuned", val=0.8, encoder_state=encoder_state)
    return root / "results/train_finetuned/model.pt"


@pytest.fixture(scope="module")
def threshold(model_path, photos):
    """The median of the probabilities: of a model that has learned nothing they are all alike."""
    paths = sorted(photos.iterdir())
    maps = Predictor.load(model_path, device="cpu").predict_encoded(paths)
    return float(np.median(np.concatenate([found.ravel() for found in maps])))


@pytest.fixture(scope="module")
def export(model_path, photos, threshold):
    """Runs `lesionseg export html ...`; torch writes the graph once, which takes seconds."""
    pytest.importorskip("onnxscript", reason="needs: pip install -e '.[export]'")
    model, image_size = load_model(model_path, stage="train_finetuned")
    plain = graph.to_onnx(model, image_size=image_size).SerializeToString()

    def to_onnx(model, *, image_size, input_kind):
        assert (image_size, input_kind) == (IMAGE_SIZE, "uint8")
        return onnx.load_from_string(plain)

    def export(out, *arguments):
        given = ["--model", model_path, "--images", photos, "--threshold", threshold, "--out", out]
        return main(["export", "html", *map(str, given), *arguments])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "to_onnx", to_onnx)
        yield export


@pytest.fixture(scope="module")
def html(tmp_path_factory, engine, export):
    path = tmp_path_factory.mktemp("page") / "segment.html"
    assert export(path, "--precision", "float32") == 0
    return path


@pytest.fixture
def open_page(open_file, html):
    """Opens the page and waits for its network."""

    def open_page(**options):
        page = open_file(html, **options)
        page.wait_for_selector(READY, timeout=WAIT)
        return page

    return open_page


@pytest.fixture(scope="module")
def lasting_page(browser, html):
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(html.as_uri())
    page.wait_for_selector(READY, timeout=WAIT)
    yield page
    context.close()


@pytest.fixture
def page(lasting_page):
    """The page with its network, and nothing of the test before: loading takes a second."""
    for button in lasting_page.locator(".remove").all()[::-1]:
        button.click()
    lasting_page.evaluate("document.getElementById('errors').replaceChildren()")
    lasting_page.evaluate("document.activeElement.blur()")
    lasting_page.set_viewport_size(DESKTOP)
    lasting_page.emulate_media(color_scheme="light")
    return lasting_page


def segment(page, *paths):
    """Gives files to the page, and waits until each has a card or a line."""
    seen = "document.querySelectorAll('.card[data-name], #errors li').length"
    num = page.evaluate(seen) + len(paths)
    page.locator("#files").set_input_files([str(path) for path in paths])
    wait_for(page, num)


def wait_for(page, num):
    page.wait_for_function(
        "num => document.querySelectorAll('.card[data-name], #errors li').length >= num "
        "&& document.getElementById('progress').hidden",
        arg=num,
        timeout=WAIT,
    )


def names(page):
    return page.locator(".card[data-name]").evaluate_all("all => all.map(o => o.dataset.name)")


def download(page, locator):
    with page.expect_download() as found:
        locator.click()
    return found.value.suggested_filename, found.value.path().read_bytes()


def read_archive(page):
    name, content = download(page, page.locator("#all"))
    assert name == "lesionseg.zip"
    return unpack(content)


def unpack(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_mask(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image) == 255


def predict(model_path, paths, threshold):
    """Probabilities by torch, and the pixels whose side of the threshold is not of rounding."""
    maps = Predictor.load(model_path, device="cpu").predict_encoded(paths)
    return [(found, np.abs(found - threshold) > ROUNDING) for found in maps]


def check_masks(files, paths, predicted, threshold):
    """The page's masks are those of `predict`, but for pixels at the threshold."""
    for path, (probability, clear) in zip(paths, predicted, strict=True):
        mask = read_mask(files[f"{path.stem}_segmentation.png"])
        assert np.array_equal(mask[clear], (probability > threshold)[clear]), path.name
        assert clear.mean() > 0.9
        assert 0.05 < mask.mean() < 0.95


@pytest.fixture(scope="module")
def by_predict(tmp_path_factory, model_path, photos, threshold):
    """What `lesionseg predict` writes of the photographs."""
    out = tmp_path_factory.mktemp("predictions")
    given = ["--model", model_path, "--threshold", threshold, "--out", out, "--device", "cpu"]
    assert main(["predict", str(photos), *map(str, given), "--contours", "geojson"]) == 0
    return out


def test_the_masks_are_those_of_predict(page, photos, model_path, threshold, by_predict):
    paths = sorted(photos.iterdir())
    segment(page, *paths)
    assert page.locator("#errors li").count() == 0
    files = read_archive(page)
    check_masks(files, paths, predict(model_path, paths, threshold), threshold)
    for path in paths:
        name = f"{path.stem}_segmentation.png"
        mask, expected = read_mask(files[name]), read_mask((by_predict / name).read_bytes())
        assert (mask != expected).mean() < 0.002


# Keeps what the page would save, and saves nothing.
KEEP = """{
  window.kept = [];
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { kept.push(blob); return make.call(URL, blob); };
  HTMLAnchorElement.prototype.click = () => {};
}"""
LAST_KEPT = """new Promise((give) => {
  const reader = new FileReader();
  reader.onload = () => give(reader.result);
  reader.readAsDataURL(kept.at(-1));
})"""


def test_the_masks_are_those_of_predict_in_firefox(html, photos, model_path, threshold, tmp_path):
    pytest.importorskip("aiohttp", reason="needs: pip install aiohttp")
    from tests import firefox

    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("needs firefox")
    paths = sorted(photos.iterdir())

    async def ask():
        async with firefox.opened(program, html.as_uri(), tmp_path) as page:
            await page.wait_for("document.querySelector('html.ready')")
            await page.set_files("document.getElementById('files')", paths)
            seen = "document.querySelectorAll('.card[data-name], #errors li').length"
            await page.wait_for(f"{seen} === {len(paths)}")
            await page.evaluate(KEEP)
            await page.evaluate("document.getElementById('all').click()")
            await page.wait_for("kept.length")
            loaded = "performance.getEntriesByType('resource').map(({ name }) => name).join()"
            return [(await page.evaluate(what))["value"] for what in (LAST_KEPT, loaded)]

    with ThreadPoolExecutor(1) as pool:  # playwright has an event loop in this thread
        archive, loaded = pool.submit(lambda: asyncio.run(ask())).result()
    assert not re.search(r"\w+://", loaded.replace("blob:", ""))
    files = unpack(base64.b64decode(archive.partition(",")[2]))
    check_masks(files, paths, predict(model_path, paths, threshold), threshold)


def test_the_other_files_are_those_of_predict(page, photos, by_predict):
    paths = sorted(photos.iterdir())
    segment(page, *paths)
    files = read_archive(page)
    ours = sorted(path.name for path in by_predict.iterdir())
    assert sorted(files) == ours
    table, expected = (
        pd.read_csv(stream).assign(
            file=lambda rows: rows["file"].str.replace(r".*/", "", regex=True)
        )
        for stream in (io.BytesIO(files["summary.csv"]), by_predict / "summary.csv")
    )
    assert table["file"].tolist() == expected["file"].tolist()
    assert (table[["height", "width"]] == expected[["height", "width"]]).all(axis=None)
    np.testing.assert_allclose(table["lesion_fraction"], expected["lesion_fraction"], atol=0.002)
    equal = 0
    for path in paths:
        mask, outlines = (f"{path.stem}_{end}" for end in ("segmentation.png", "contours.geojson"))
        if np.array_equal(read_mask(files[mask]), read_mask((by_predict / mask).read_bytes())):
            theirs = (by_predict / outlines).read_text()
            theirs = re.sub(r'"file":"[^"]*/', '"file":"', theirs)
            assert normal(files[outlines].decode()) == normal(theirs)
            equal += 1
    assert equal > len(paths) / 2


def test_single_files_come_from_a_card(page, photos):
    segment(page, photos / "plain1.png", photos / "turned6.jpg")
    files = read_archive(page)
    card = page.locator('.card[data-name="turned6"]')
    for button in (".mask", ".outline"):
        name, content = download(page, card.locator(button))
        assert name.startswith("turned6_")
        assert files[name] == content
    assert download(page, page.locator("#table")) == ("summary.csv", files["summary.csv"])


def test_a_card_shows_the_image_upright_with_its_mask(page, photos):
    segment(page, photos / "turned6.jpg", photos / "plain1.png")
    first, second = page.locator(".card[data-name]").all()
    assert first.locator(".size").inner_text() == "70 × 117 pixels"
    assert second.locator("svg").get_attribute("viewBox") == "0 0 151 97"
    shown = first.locator("img").evaluate(
        "async (i) => { await i.decode(); return i.naturalWidth }"
    )
    assert shown == 70
    files = read_archive(page)
    mask = read_mask(files["plain1_segmentation.png"])
    text = second.locator(".share").inner_text()
    assert text.startswith(f"lesion: {100 * mask.mean():.1f} % of the image")
    assert ("touches the border" in text) == bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())
    paths = second.locator("path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    assert len(set(paths)) == 1
    assert paths[0].startswith("M")


def test_half_precision_makes_a_smaller_page_with_almost_the_same_masks(
    export,
    html,
    engine,
    open_file,
    photos,
    model_path,
    threshold,
    tmp_path,
    capsys,
):
    path = tmp_path / "segment.html"
    assert export(path) == 0
    assert ", float16, threshold " in capsys.readouterr().out
    assert path.stat().st_size < 0.8 * html.stat().st_size
    page = open_file(path, accept_downloads=True)
    page.wait_for_selector(READY, timeout=WAIT)
    paths = sorted(photos.glob("plain*"))
    segment(page, *paths)
    files = read_archive(page)
    for path, (probability, _) in zip(paths, predict(model_path, paths, threshold), strict=True):
        mask = read_mask(files[f"{path.stem}_segmentation.png"])
        near = np.abs(probability - threshold) < 0.02
        assert np.array_equal(mask[~near], (probability > threshold)[~near])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A photograph of 12 megapixels, turned by EXIF, its sides no multiple of 8."""
    pixels = np.asarray(
        Image.fromarray(draw_phantom(size=500, seed=3)[0]).resize(
            (4001, 3003), Image.Resampling.BICUBIC
        )
    )
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    save(pixels, path, orientation=6, quality=92)
    return path


def test_a_photograph_of_12_megapixels_takes_less_than_two_seconds(page, large, photos):
    segment(page, photos / "plain0.png")  # what is done once is done
    segment(page, large)
    card = page.locator('.card[data-name="large"]')
    assert card.locator(".size").inner_text() == "3003 × 4001 pixels"
    share = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1)  # others may work here too
    assert int(card.get_attribute("data-milliseconds")) < 2000 * share


def test_of_a_large_jpeg_the_mask_is_almost_that_of_predict(page, large, model_path, threshold):
    segment(page, large)
    mask = read_mask(read_archive(page)["large_segmentation.png"])
    [(probability, _)] = predict(model_path, [large], threshold)
    expected = probability > threshold
    assert mask.shape == expected.shape
    assert (mask & expected).sum() > 0.99 * (mask | expected).sum()


def test_transparent_pixels_are_white(page, photos, model_path, threshold, tmp_path):
    pixels, mask = draw_phantom(size=80, seed=2)
    path = tmp_path / "transparent.png"
    Image.fromarray(np.dstack([pixels, mask * np.uint8(255)])).save(path)
    segment(page, path)
    found = read_mask(read_archive(page)["transparent_segmentation.png"])
    [(probability, clear)] = predict(model_path, [path], threshold)
    assert np.array_equal(found[clear], (probability > threshold)[clear])


def test_a_file_that_is_no_image_is_one_line_and_the_others_are_done(page, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "short.jpg").write_bytes((photos / "turned1.jpg").read_bytes()[:200])
    deep = Image.fromarray(np.zeros((9, 9), np.uint16))
    deep.save(tmp_path / "deep.png")
    paths = [tmp_path / name for name in ("broken.jpg", "short.jpg", "deep.png")]
    segment(page, paths[0], photos / "plain0.png", *paths[1:])
    unreadable = (
        "cannot be read as an image by this browser. "
        "If another program shows it, save it there as JPEG or PNG"
    )
    assert page.locator("#errors li").all_inner_texts() == [
        f"broken.jpg {unreadable}",
        f"short.jpg {unreadable}",
        "deep.png has 16 bits a channel, which a browser cuts off. Save it with 8",
    ]
    assert names(page) == ["plain0"]
    assert page.locator("#status").inner_text() == "1 image."


HAND_OVER = """([event, name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type}));
  const options = {bubbles: true, cancelable: true, [event === "paste" ? "clipboardData" :
    "dataTransfer"]: data};
  const Kind = event === "paste" ? ClipboardEvent : DragEvent;
  const handed = new Kind(event, options);
  document.body.dispatchEvent(handed);
  return handed.defaultPrevented;
}"""


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_images_may_be_dropped_or_pasted(page, photos, event):
    content = base64.b64encode((photos / "plain0.png").read_bytes()).decode()
    was_prevented = page.evaluate(HAND_OVER, [event, "image.png", "image/png", content])
    assert was_prevented == (event == "drop")  # or the browser would open the image
    wait_for(page, 1)
    assert names(page) == ["image"]


def test_dragging_over_the_page_is_answered(page):
    page.evaluate(HAND_OVER, ["dragover", "a.png", "image/png", ""])
    assert page.locator("html.dragged-over").count() == 1


def test_images_with_one_name_get_files_of_their_own(page, photos, tmp_path):
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / f"{number}/image.png").write_bytes((photos / f"plain{number}.png").read_bytes())
        segment(page, tmp_path / f"{number}/image.png")
    assert names(page) == ["image", "image_2"]
    assert {"image_segmentation.png", "image_2_segmentation.png"} <= set(read_archive(page))


def test_files_given_while_it_loads_wait_for_the_network(open_file, html, photos):
    page = open_file(html)
    page.locator("#files").set_input_files(str(photos / "plain0.png"))
    wait_for(page, 1)
    assert names(page) == ["plain0"]


WATCH = """
window.shares = [];
new MutationObserver(() => {
  const progress = document.getElementById("progress");
  if (progress && !progress.hidden && progress.hasAttribute("value")) shares.push(progress.value);
}).observe(document, {subtree: true, childList: true, attributes: true});
"""


def test_loading_shows_its_progress(open_page):
    page = open_page(script=WATCH)
    shares = page.evaluate("shares")
    assert len(set(shares)) > 5
    assert all(before <= after for before, after in pairwise(shares))
    assert shares[-1] == 1
    assert page.locator("#status").inner_text() == "Ready."
    assert not page.locator("#progress").is_visible()


def test_the_page_asks_nothing_of_the_network_and_complains_of_nothing(open_page, photos, html):
    page = open_page(accept_downloads=True)
    segment(page, photos / "plain0.png", photos / "turned6.jpg")
    read_archive(page)
    others = [text for text in page.complaints if not text.startswith("blob:")]
    assert others == [html.as_uri()]


def test_its_policy_forbids_to_send_and_to_run_anything_else(open_page):
    page = open_page()

    def answer(expression):
        return page.evaluate(
            f"async () => {{ try {{ {expression} }} catch (e) {{ return e.name }} }}"
        )

    failures = []
    page.on("requestfailed", lambda request: failures.append(request.failure))
    for url in ("https://localhost/", "data:,", "blob:null/0"):
        assert answer(f"await fetch('{url}'); return 'sent'") == "TypeError"
    assert answer("new WebSocket('wss://localhost'); return 'sent'") != "TypeError"
    page.evaluate(
        "const other = document.createElement('script'); other.text = 'hacked = 1';"
        " document.body.append(other); setTimeout('hacked = 1');"
        " const image = document.createElement('img'); image.src = 'https://localhost/a.png';"
        " document.body.append(image);"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    refused = [text for text in page.complaints if "Content Security Policy" in text]
    assert len(refused) >= 6
    assert failures == ["csp"]  # of the image; the others were not even tried


def test_it_says_what_it_is_for_and_what_it_is(page, model_path, threshold):
    text = page.locator("header").inner_text()
    assert "Research use, not for diagnosis." in text
    assert "Your images never leave this page" in text
    page.locator("summary").click()
    about = page.locator("footer dl").inner_text()
    for fact in (sha256(model_path), "abc123", f"{threshold!r}", "MIT", runtime.VERSION):
        assert fact in about


def test_the_keyboard_reaches_everything(open_page, photos):
    page = open_page()
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.wait_for_timeout(1000)  # playwright is told of choosers from a little later on
        page.keyboard.press("Enter")
    chooser.value.set_files(str(photos / "plain0.png"))
    wait_for(page, 1)
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert reached[:7] == ["opacity", "outlines", "table", "all", "mask", "outline", "remove"]
    page.locator("#opacity").focus()
    before = page.locator("path.region").first.evaluate("one => getComputedStyle(one).fillOpacity")
    page.keyboard.press("End")
    after = page.locator("path.region").first.evaluate("one => getComputedStyle(one).fillOpacity")
    assert (before, after) == ("0.35", "1")
    page.locator("#outlines").focus()
    assert page.locator("path.line").is_visible()
    page.keyboard.press("Space")
    assert not page.locator("path.line").is_visible()
    page.locator(".remove").focus()
    page.keyboard.press("Enter")
    assert names(page) == []
    assert page.evaluate("document.activeElement.id") == "choose"
    assert not page.locator("#tools").is_visible()


def test_buttons_tell_which_image_they_belong_to(page, photos):
    segment(page, photos / "plain0.png", photos / "plain1.png")
    assert page.get_by_role("button", name="Mask of plain1.png").count() == 1


def test_it_never_scrolls_sideways(page, photos, tmp_path):
    name = tmp_path / f"{'a_long_name' * 12}.png"
    name.write_bytes((photos / "plain2.png").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"")
    segment(page, name, photos / "plain3.png", tmp_path / "broken.jpg")
    page.locator("summary").click()
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_can_photograph(open_page, page):
    assert not page.locator("#photograph").is_visible()
    phone = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    button = phone.locator("#photograph")
    assert button.is_visible()
    assert phone.locator("#camera").get_attribute("capture") == "environment"
    with phone.expect_file_chooser() as chooser:
        button.tap()
    assert chooser.value.element.get_attribute("id") == "camera"
    for control in phone.locator("button:visible").all():
        assert control.bounding_box()["height"] >= 44  # what a finger hits


def test_the_dark_page_has_other_colours(page, photos):
    segment(page, photos / "plain0.png")

    def colours(selector):
        return page.locator(selector).first.evaluate(
            "(one) => { const {color, backgroundColor} = getComputedStyle(one);"
            " return [color, backgroundColor] }"
        )

    selectors = ["body", ".card", "#choose", "button.mask", "#status"]
    light = list(map(colours, selectors))
    page.emulate_media(color_scheme="dark")
    assert all(a != b for a, b in zip(light, map(colours, selectors), strict=True))


BLUR = """
const read = CanvasRenderingContext2D.prototype.getImageData;
CanvasRenderingContext2D.prototype.getImageData = function (...box) {
  const image = read.apply(this, box);
  image.data[image.data.length - 4] ^= 1;
  return image;
};
"""


def test_a_browser_that_blurs_pixels_is_refused_in_one_line(open_file, html):
    page = open_file(html, script=BLUR)
    page.wait_for_selector(".failed:visible")
    text = page.locator("#status").inner_text()
    assert text.startswith(
        "This page cannot work here: this browser changes the pixels that a page"
    )
    assert "\n" not in text


def test_without_script_it_says_so(open_file, html):
    page = open_file(html, java_script_enabled=False)
    assert page.get_by_text("This page cannot work here: it needs JavaScript.").is_visible()


def test_the_command_says_what_it_wrote(export, html, engine, tmp_path, capsys):
    assert export(tmp_path / "a.html", "--precision", "float32") == 0
    said = capsys.readouterr().out
    assert re.match(
        rf"{re.escape(str(tmp_path))}/a\.html: \d+\.\d MB, float32, threshold [\d.]+; open it in "
        r"any browser\nmasks of 14 images \(.*\) beside torch's: ",
        said,
    )
    assert (tmp_path / "a.html").read_bytes() == html.read_bytes()  # the same every time


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """A cache of its own, and a fake npm that answers as it is told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fake_npm(answer):
        monkeypatch.setattr(runtime.shutil, "which", lambda _: "npm")
        monkeypatch.setattr(runtime.subprocess, "run", answer)

    return fake_npm


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            None,
            "npm, which fetches onnxruntime-web once, is missing. Install Node.js. Or put the file",
        ),
        (
            lambda command, **_: subprocess.CompletedProcess(command, 1, "", "npm error 404\nmore"),
            "npm cannot fetch onnxruntime-web 1.30.0 (npm error 404). Look at: npm ping. Or put",
        ),
        (
            lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""),
            "npm cannot fetch onnxruntime-web 1.30.0 (it left no file)",
        ),
    ],
    ids=["no npm", "refused", "nothing"],
)
def test_a_runtime_that_cannot_be_had_is_one_line(
    no_cache, export, monkeypatch, capsys, tmp_path, answer, expected
):
    monkeypatch.setattr(runtime.shutil, "which", lambda _: None)
    if answer:
        no_cache(answer)
    capsys.readouterr()
    assert export(tmp_path / "a.html") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {expected}")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "a.html").exists()


def test_another_file_than_the_tested_one_is_refused(no_cache, tmp_path):
    path = runtime.cached_path()
    assert path.is_relative_to(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    with pytest.raises(ExportError, match=r"its SHA-512 differs\. Remove it and run"):
        runtime.load_runtime()
