"""params.yaml: what it may say, and the one line that answers each mistake."""

import itertools
import math
import random
import re
import time
from datetime import date
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import loads_yaml
from ruamel.yaml import YAMLError

from lesionseg.config import load_config, override, read_yaml
from lesionseg.errors import ConfigError, LesionsegError, MissingFileError

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
# Keys without a comment of their own, and the key right above whose comment they share.
SHARES = {
    "download.phantom_num_test": "phantom_num_train",
    "loss.dice": "bce",
    "loss.iou": "dice",
    "augment.contrast": "brightness",
    "augment.saturation": "contrast",
}


@pytest.fixture
def content() -> dict:
    return yaml.safe_load(PARAMS.read_text(encoding="utf-8"))


def load(tmp_path: Path, content: dict | str):
    path = tmp_path / "params.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def message_of(tmp_path: Path, content: dict | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_repository_s_params_load_and_hold_what_the_file_says(content):
    config = load_config(PARAMS)
    assert config.external == tuple(content.pop("external"))
    for section, values in content.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value, (section, key)


def test_every_value_in_params_carries_a_comment():
    above, section, key = "", "", ""
    for line in PARAMS.read_text(encoding="utf-8").splitlines():
        if line.startswith("  ") and not line.lstrip().startswith("#"):
            before, key = key, line.split(":")[0].strip()
            name = f"{section}.{key}"
            assert above == "comment" or before == SHARES.get(name), f"{name} has no comment"
            above = "key"
        elif line.lstrip().startswith("#"):
            above = "comment"
        elif line:
            # A section's first key may share the section's comment.
            section, key = line.split(":")[0], ""
        else:
            above = ""


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("1e-05", 1e-5), ("1E-3", 1e-3), (".5e-2", 5e-3), ("2.e+1", 20), ("3", 3)],
)
def test_every_usual_spelling_of_a_number_is_that_number(tmp_path, text, number):
    config = load(tmp_path, PARAMS.read_text("utf-8").replace("lr: 0.002", f"lr: {text}"))
    assert config.train.lr == number
    assert type(config.train.lr) is float


def test_a_whole_number_may_be_written_as_a_float_and_stays_whole(tmp_path, content):
    content["train"]["epochs"] = 3.0
    content["evaluate"]["tta_views"] = 8.0
    config = load(tmp_path, content)
    values = (config.train.epochs, config.evaluate.tta_views)
    assert values == (3, 8)
    assert all(type(value) is int for value in values)


def test_text_that_looks_like_a_number_stays_text_in_quotes(tmp_path):
    text = PARAMS.read_text("utf-8").replace('folder: ""', 'folder: "1e-4"')
    assert load(tmp_path, text).download.folder == "1e-4"


WHOLE, POSITIVE = "a whole number at least 1 and at most 10000", "a number above 0"
SIZE = "a multiple of 32 at least 64 and at most 1024"
SEED = "a whole number at least 0 and below 4294967296"


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("train", "lr", "fast", POSITIVE),
        ("train", "lr", "1e-4x", POSITIVE),
        ("train", "lr", True, POSITIVE),
        ("train", "lr", None, POSITIVE),
        ("train", "lr", [0.1], POSITIVE),
        ("train", "lr", 0, POSITIVE),
        ("train", "lr", float("inf"), POSITIVE),
        ("train", "lr", float("nan"), POSITIVE),
        ("train", "epochs", False, WHOLE),
        ("train", "epochs", 1.5, WHOLE),
        ("train", "epochs", 0, WHOLE),
        ("train", "weight_decay", -0.1, "a number at least 0"),
        ("train", "warmup_fraction", 1.0, "a number at least 0 and below 1"),
        ("train", "seed", 2**32, SEED),
        ("train", "seed", -1, SEED),
        ("train", "device", "gpu", "auto, cpu, cuda or cuda:N"),
        ("train", "device", "cuda:", "auto, cpu, cuda or cuda:N"),
        ("train", "device", "cuda:x", "auto, cpu, cuda or cuda:N"),
        ("train", "precision", 16, "one of auto, float32, bfloat16"),
        ("report", "title", 5, "a line of text"),
        ("report", "title", "", "a line of text"),
        ("report", "title", None, "a line of text"),
        ("report", "num_examples", 25, "a whole number at least 1 and at most 24"),
        ("download", "folder", None, "text"),
        ("download", "folder", 7, "text"),
        ("download", "test_fraction", 0, "a number above 0 and below 1"),
        ("download", "test_fraction", 1, "a number above 0 and below 1"),
        ("preprocess", "image_size", 100, SIZE),
        ("preprocess", "image_size", 0, SIZE),
        ("preprocess", "image_size", 2048, SIZE),
        ("preprocess", "val_fraction", 0, "a number above 0 and below 1"),
        ("preprocess", "val_fraction", 1, "a number above 0 and below 1"),
        ("augment", "rotation_degrees", 180.5, "a number at least 0 and at most 180"),
        ("augment", "horizontal_flip", 1.1, "a number at least 0 and at most 1"),
        ("augment", "padding", "mirror", "one of zeros, border, reflection"),
        ("evaluate", "num_resamples", 99, "a whole number at least 100 and at most 1000000"),
        ("evaluate", "tta_views", 3, "one of 1, 2, 4, 8"),
        ("evaluate", "tta_views", 0, "one of 1, 2, 4, 8"),
        ("evaluate", "tta_views", True, "one of 1, 2, 4, 8"),
        ("evaluate", "tta_views", "all", "one of 1, 2, 4, 8"),
        ("evaluate", "tta_views", [8], "one of 1, 2, 4, 8"),
        ("train_frozen", "encoder_lr", 0.001, "0"),
        ("train_finetuned", "encoder_lr", 0, POSITIVE),
        ("train", "cross_validate", 1, "true or false"),
        ("train", "cross_validate", "true", "true or false"),
        ("train", "cross_validate", None, "true or false"),
    ],
)
def test_a_wrong_value_is_answered_with_place_expected_and_got(
    tmp_path, content, section, key, value, expected
):
    content[section][key] = value
    message = f"params.yaml: {section}: {key} must be {expected}, got {value!r}"
    assert message_of(tmp_path, content) == message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", 1),
        ("train", "weight_decay", 0),
        ("train", "warmup_fraction", 0),
        ("train", "seed", 2**32 - 1),
        ("train", "device", "cuda:1"),
        ("preprocess", "image_size", 1024),
        ("augment", "rotation_degrees", 180),
        ("augment", "shift", 0.5),
        ("evaluate", "num_resamples", 100),
        ("evaluate", "tta_views", 8),
        ("report", "num_examples", 24),
        ("download", "phantom_size", 32),
    ],
)
def test_the_ends_of_a_closed_range_are_allowed(tmp_path, content, section, key, value):
    content[section][key] = value
    assert getattr(getattr(load(tmp_path, content), section), key) == value


@pytest.mark.parametrize(("section", "key"), [("preprocess", "image_size"), ("train", "lr")])
def test_a_whole_number_of_400_digits_is_answered_in_one_line(tmp_path, content, section, key):
    content[section][key] = 10**400
    assert message_of(tmp_path, content).startswith(f"params.yaml: {section}: {key} must be ")


@pytest.mark.parametrize(
    ("section", "key", "value", "hint"),
    [
        ("model", "decoder", "bilinaer", "; did you mean bilinear?"),
        ("download", "source", "pantom", "; did you mean phantom?"),
        ("model", "decoder", "unet", ""),
        ("evaluate", "tta_views", "8", "; did you mean 8?"),
    ],
)
def test_an_unknown_choice_names_the_choices_and_the_close_one(
    tmp_path, content, section, key, value, hint
):
    content[section][key] = value
    message = message_of(tmp_path, content)
    assert message.startswith(f"params.yaml: {section}: {key} must be one of ")
    assert message.endswith(f", got {value!r}{hint}")


def test_an_unknown_section_is_answered_with_the_close_one(tmp_path, content):
    content["trian"] = content.pop("train")
    message = message_of(tmp_path, content)
    assert message == "params.yaml: unknown section 'trian'; did you mean train?"


def test_an_unknown_section_far_from_all_is_answered_with_all(tmp_path, content):
    message = message_of(tmp_path, {**content, "zzz": {}})
    assert message.startswith("params.yaml: unknown section 'zzz'; known: download, external, ")


def test_an_unknown_key_is_answered_with_the_close_one(tmp_path, content):
    content["train"]["learning_rates"] = 1
    content["train"]["epoch"] = 1
    assert "params.yaml: train: unknown key 'learning_rates'; " in message_of(tmp_path, content)
    del content["train"]["learning_rates"]
    message = message_of(tmp_path, content)
    assert message == "params.yaml: train: unknown key 'epoch'; did you mean epochs?"


def test_a_key_that_is_no_text_is_unknown(tmp_path, content):
    content["train"][7] = 1
    assert "params.yaml: train: unknown key 7; known: " in message_of(tmp_path, content)


@pytest.mark.parametrize("section", yaml.safe_load(PARAMS.read_text("utf-8")))
def test_each_section_and_each_key_must_be_there(tmp_path, content, section):
    next_step = "is missing; add it, as in git show HEAD:params.yaml"
    values = content.pop(section)
    message = message_of(tmp_path, content)
    assert message == f"params.yaml: section {section} {next_step}"
    for key in values:
        shorter = {name: value for name, value in values.items() if name != key}
        message = message_of(tmp_path, {**content, section: shorter})
        assert message == f"params.yaml: {section}: key {key} {next_step}"


@pytest.mark.parametrize("value", [None, 3, "fast", [1, 2]])
def test_a_section_must_hold_keys(tmp_path, content, value):
    content["train"] = value
    message = message_of(tmp_path, content)
    assert message == f"params.yaml: train must be a section of keys and values, got {value!r}"


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words\n"])
def test_a_file_without_sections_is_refused(tmp_path, text):
    message = message_of(tmp_path, text)
    assert message.startswith("params.yaml must hold sections of keys and values, got ")


def test_broken_yaml_is_answered_with_its_line(tmp_path):
    assert message_of(tmp_path, "train:\n  lr: [1, 2\n").startswith("params.yaml: line 3: not YAML")
    message = message_of(tmp_path, "train:\n  lr: 1\n\tepochs: 2\n")
    assert message.startswith("params.yaml: line 3: not YAML")


def test_bytes_that_are_no_text_are_answered_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"train: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"^params\.yaml: not YAML .*$"):
        load_config(tmp_path / "params.yaml")


SPELLINGS = """
017 -017 0o17 -0o17 0o8 0x1F 0b11 1_000 1__0 _1 1_ 08 +5 -0 1,000 0x 0b 0o 0b_
1e4 1E4 1e-4 .5 5. .5e4 .5e-4 -.5 +.5 1.e4 1e 1_0.5 1e400 . ._ ._5 1.2.3
.inf -.inf +.inf .Inf .nan .NaN inf nan NaN Infinity
no No yes on off y n true True TRUE tRUE false null Null NULL ~ nUll = <<
12:30:45 1:20 2024-01-01 2024-1-1 2024-13-45 2024-01-01x
2024-01-01T10:00:00 2024-1-1T1:00:00 text a:b a#b -a --1 '017' "1e-4" 'no'
"""
TWO_WORDS = ("2024-01-01 10:00:00", "a # b", "!!int '017'", "!!str no", "!!float 3", "!!int 0")


def read_by_us(tmp_path, text):
    """What a document holds, or the error that it is."""
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    try:
        return read_yaml(path)
    except ConfigError:
        return ConfigError


def read_by_dvc(text):
    try:
        return loads_yaml(text)
    except (YAMLError, ValueError):
        return ConfigError


def is_the_same(one, other):
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


def assert_read_alike(tmp_path, spellings):
    wrong = []
    for spelling in spellings:
        text = f"key: {spelling}\n"
        ours, theirs = read_by_us(tmp_path, text), read_by_dvc(text)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            ours, theirs = ours["key"], theirs["key"]
        if not is_the_same(ours, theirs):
            wrong.append((spelling, ours, theirs))
    assert wrong == []


def test_every_spelling_of_a_value_is_read_as_dvc_reads_it(tmp_path):
    assert_read_alike(tmp_path, [*SPELLINGS.split(), *TWO_WORDS])


def test_whatever_looks_like_a_number_is_read_as_dvc_reads_it(tmp_path):
    shuffled = random.Random(0)
    lengths = itertools.cycle(range(1, 7))
    spellings = ["".join(shuffled.choices("0127_+-.eEoxb", k=next(lengths))) for _ in range(300)]
    # What begins or ends so is no value, but a list or a document.
    spellings = [text for text in spellings if not text.startswith("-") and text != "..."]
    assert_read_alike(tmp_path, spellings)


KEY_IN_MERGE = "a: {<<: {lr: 1, lr: 2}}\n"  # DVC keeps the last one, without a word
KEY_OF_LIST = "? [1, 2]\n: 3\n"  # for DVC a tuple
DOCUMENTS = [
    "\ufeffa: 1\n",
    "a: 1\r\nb: 2\r\n",
    "a: &x {lr: 1, n: no}\nb: {<<: *x, lr: 2}\nc: *x\nd: {<<: [{lr: 5}, *x]}\n",
    "a: &x {lr: 1}\nb: &y {<<: *x, lr: 2}\nc: {<<: *y, lr: 3}\n",
    "a: 1\n1: 2\nno: 3\n~: 4\n",
    "a: 1\n0x1: 2\n1: 3\n",
    "a: {lr: 1, lr: 2}\n",
    KEY_IN_MERGE,
    "a: &x {lr: 1}\nb: {<<: *x, <<: *x}\n",
    "a: {<<: 1}\n",
    "---\na: 1\n---\nb: 2\n",
    "%YAML 1.2\n---\na: 017\n",
    "a: [1, 2\n",
    "a: *x\n",
    KEY_OF_LIST,
    "a: !!python/object:os.system x\n",
    "a: |\n  017\n  no\n",
    "a: >-\n  no\n",
]


@pytest.mark.parametrize("text", DOCUMENTS)
def test_every_document_is_read_as_dvc_reads_it_or_refused(tmp_path, text):
    ours, theirs = read_by_us(tmp_path, text), read_by_dvc(text)
    is_stricter = text in (KEY_IN_MERGE, KEY_OF_LIST)
    assert ours == (ConfigError if is_stricter else theirs)


def test_a_directive_that_gives_values_another_meaning_is_refused(tmp_path):
    message = message_of(tmp_path, "%YAML 1.1\n---\na: 017\n")
    assert message == "params.yaml: %YAML other than 1.2 gives values another meaning; remove it"


def references(first, following):
    """Each line names the one before ten times: ten lines are ten thousand million values."""
    lines = [following.format(n=n, before=f"*a{n - 1}, " * 10) for n in range(1, 11)]
    return "\n".join([first, *lines, ""])


HOSTILE = {
    "lists": references("a0: &a0 [x]", "a{n}: &a{n} [{before}]"),
    "merges": references("a0: &a0 {x: 1}", "a{n}: &a{n} {{k{n}: 1, <<: [{before}]}}"),
    "a list in itself": "a: &a [*a]\n",
    "a section in itself": "a: &a {b: *a}\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "10,000 lists": "a: " + "[" * 10_000 + "]" * 10_000,
    "10,000 dashes": "a:\n" + "- " * 10_000,
    "10,000 sections": "a: " + "{a: " * 10_000 + "}" * 10_000,
    "a huge file": "a: [" + "1," * 1_000_000 + "]\n",
    "a huge decimal": "a: 1" + "0" * 30_000,
    "a huge file of digits": "a: 1" + "0" * 100_000,
    "tabs": "train:\n\tlr: 1\n",
    "a control character": "a: \x07\n",
    "a kind that is none": "a: !!bool maybe\n",
    "a time that is none": "a: !!timestamp x\n",
    "no digits": "a: !!int ''\n",
    "nothing": "",
    "a list": "- 1\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_run_for_ever_is_refused_at_once_in_one_line(tmp_path, kind):
    start = time.process_time()
    message = message_of(tmp_path, HOSTILE[kind])
    assert time.process_time() - start < 2
    assert message.startswith("params.yaml")
    assert len(message) < 500


def test_a_huge_number_is_answered_without_its_digits(tmp_path, content):
    text = yaml.safe_dump(content).replace("epochs: 30", "epochs: 0x" + "f" * 20_000)
    assert message_of(tmp_path, text).endswith("got a number of more than 4300 digits")
    message = message_of(tmp_path, yaml.safe_dump(content) + f"? 0x{'f' * 20_000}\n: 1\n")
    assert message.startswith("params.yaml: unknown section a number of more than 4300 digits; ")


def test_bytes_that_are_no_text_are_answered_in_one_line_too(tmp_path):
    for content in (b"a: \xff\xfe\n", "a: 1\n".encode("utf-16"), b"\x00" * 10):
        (tmp_path / "params.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^params\.yaml: .*not YAML .*$"):
            read_yaml(tmp_path / "params.yaml")


def test_a_date_is_answered_with_what_makes_it_text(tmp_path, content):
    content["report"]["title"] = date(2024, 1, 1)
    assert message_of(tmp_path, content) == (
        "params.yaml: report: title must be a line of text, got datetime.date(2024, 1, 1); "
        "text that looks like a date stands in quotes"
    )
    text = PARAMS.read_text("utf-8").replace("lr: 0.002", "lr: 2024-13-45")
    assert message_of(tmp_path, text).startswith("params.yaml: not YAML (")


WORDS = """
no Yes on off y true null ~ 017 0o17 0x1F 0b1 1_000 1e5 1e-4 1.e5 .5e-4 .inf .nan 12:30:45 1:20
2024-01-01 2024-1-1T1:00:00 = << - ? : # & * ! | > % @ ` [] {} , ' " --- ...
"""
TEXTS = [
    *WORDS.split(),
    "",
    " ",
    " a ",
    "a: b",
    "a #b",
    "ä",
    "\N{MICROSCOPE}",
    "a\nb",
    "\t",
    "\x85",
    "- a",
    "%YAML 1.1",
    "x" * 200,
    "long words " * 30,
    "\\n",
    "\x07",
    "\ufeffa",
]


def test_text_that_is_written_is_read_as_text_by_us_and_by_dvc(tmp_path):
    content = {"section": {f"key{number}": "" for number in range(len(TEXTS))}}
    values = {f"section.key{number}": text for number, text in enumerate(TEXTS)}
    text = override(content, values)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    for read in (read_yaml(tmp_path / "params.yaml"), loads_yaml(text)):
        assert list(read["section"].values()) == TEXTS


@pytest.mark.parametrize(
    "value", [0, 17, -3, 2**70, 0.1, 1e-5, 1e16, 1e300, 5e-324, -0.0, True, False, None, math.inf]
)
def test_a_value_that_is_written_is_read_as_the_same_by_us_and_by_dvc(tmp_path, value):
    text = override({"section": {"key": 1}}, {"section.key": value})
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    for read in (read_yaml(tmp_path / "params.yaml"), loads_yaml(text)):
        assert is_the_same(read["section"]["key"], value)


@pytest.mark.parametrize(
    ("section", "key", "most"),
    [
        ("train", "epochs", 10_000),
        ("train", "batch_size", 4096),
        ("train", "num_seeds", 1000),
        ("download", "phantom_num_train", 100_000),
        ("download", "phantom_num_test", 100_000),
        ("evaluate", "batch_size", 4096),
        ("evaluate", "num_resamples", 1_000_000),
    ],
)
def test_a_number_that_would_run_for_ever_is_above_its_range(tmp_path, content, section, key, most):
    content[section][key] = most
    assert getattr(getattr(load(tmp_path, content), section), key) == most
    content[section][key] = most + 1
    assert f"at most {most}, got {most + 1}" in message_of(tmp_path, content)
    above = PARAMS.read_text("utf-8").partition(f"\n{section}:\n")[2].partition(f"  {key}: ")[0]
    assert re.search(rf"[\[(]\d+, {most}\]", above), "params.yaml says another range"


def test_a_key_that_stands_twice_is_answered_with_the_line_of_the_second(tmp_path):
    text = "train:\n  lr: 1\n  epochs: 2\n  lr: 3\n"
    assert message_of(tmp_path, text) == "params.yaml: line 4: key 'lr' occurs twice; keep one"
    text = "train:\n  lr: 1\nloss:\n  bce: 1\ntrain:\n  lr: 2\n"
    assert message_of(tmp_path, text) == "params.yaml: line 5: key 'train' occurs twice; keep one"


def test_a_missing_file_is_answered_with_the_next_step(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(MissingFileError) as caught:
        load_config(path)
    assert isinstance(caught.value, LesionsegError)
    assert str(caught.value).startswith(f"{path} is missing. Run ")
    assert f"git restore {path}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_at_least_one_loss_must_weigh_something(tmp_path, content):
    content["loss"] = dict.fromkeys(content["loss"], 0) | {"dice": 0.0}
    message = message_of(tmp_path, content)
    assert message == "params.yaml: loss: all weights are 0; write one above 0"
    content["loss"]["iou"] = 0.1
    assert load(tmp_path, content).loss.iou == 0.1


def test_source_folder_needs_a_folder(tmp_path, content):
    content["download"] |= {"source": "folder", "folder": ""}
    message = message_of(tmp_path, content)
    assert message.startswith("params.yaml: download: folder is empty, and source is folder. Write")
    content["download"]["folder"] = "mine"
    assert load(tmp_path, content).download.folder == "mine"


@pytest.mark.parametrize(
    ("value", "sources"),
    [
        ("isic2018", ("isic2018",)),
        (["isic2018"], ("isic2018",)),
        (["isic2016", "isic2018"], ("isic2016", "isic2018")),
    ],
)
def test_one_source_or_a_list_of_them(tmp_path, content, value, sources):
    content["download"]["source"] = value
    config = load(tmp_path, content)
    assert config.download.sources == sources
    assert config.flat("download")["download.source"] == ", ".join(sources)


def test_a_list_of_one_source_is_that_source(tmp_path, content):
    content["download"]["source"] = ["isic2018"]
    one = load(tmp_path, content)
    content["download"]["source"] = "isic2018"
    assert one == load(tmp_path, content)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ([], ""),
        (["isic2016", "isic2016"], ""),
        (["isic2016", "pantom"], "; did you mean phantom?"),
        (["isic2016", ["ph2"]], "; did you mean ph2?"),
        (["isic2016", True], ""),
        ({"isic2016": 1}, "; did you mean isic2016?"),
        (None, ""),
    ],
)
def test_a_list_that_is_none_of_sources_is_refused(tmp_path, content, value, hint):
    content["download"]["source"] = value
    message = message_of(tmp_path, content)
    assert message.startswith("params.yaml: download: source must be one of isic2016, isic2017, ")
    assert f"phantom, or a list of different ones, got {value!r}" in message
    assert message.endswith(f"{value!r}{hint}")


def test_phantoms_are_joined_with_nothing(tmp_path, content):
    content["download"]["source"] = ["isic2016", "phantom"]
    assert message_of(tmp_path, content) == (
        "params.yaml: download: source joins phantom with others. "
        "Write phantom alone, or take it out of the list"
    )


def test_encoder_lr_is_each_run_s_own(tmp_path, content):
    content["train_finetuned"]["encoder_lr"] = 0.25
    config = load(tmp_path, content)
    assert config.encoder_lr("train_frozen") == 0
    assert config.encoder_lr("train_finetuned") == 0.25


def test_a_cross_validation_needs_more_than_one_seed(tmp_path, content):
    content["train"]["cross_validate"] = True
    assert message_of(tmp_path, content) == (
        "params.yaml: train: cross_validate is true, and num_seeds is 1. "
        "Write num_seeds above 1: each further seed validates on other images"
    )
    content["train"]["num_seeds"] = 2
    assert load(tmp_path, content).train.cross_validate is True


def test_folds_are_not_of_a_part_of_the_images(tmp_path, content):
    content["train"] |= {"cross_validate": True, "num_seeds": 2, "num_images": 40}
    assert message_of(tmp_path, content) == (
        "params.yaml: train: num_images is 40, and cross_validate is true. "
        "Write num_images 0, or cross_validate false: folds are of all images"
    )
    content["train"]["cross_validate"] = False
    assert load(tmp_path, content).train.num_images == 40


def test_flat_holds_just_the_sections_asked_for(content):
    flat = load_config(PARAMS).flat("loss", "model")
    expected = {f"{s}.{k}": v for s in ("loss", "model") for k, v in content[s].items()}
    assert flat == expected
    assert next(iter(flat)) == "loss.bce"


def test_override_changes_the_named_values_and_no_other(tmp_path, content):
    text = override(read_yaml(PARAMS), {"train.lr": 1e-5, "model.decoder": "bilinear"})
    content["train"]["lr"] = 1e-5
    content["model"]["decoder"] = "bilinear"
    assert load(tmp_path, text) == load(tmp_path, content)
    assert list(yaml.safe_load(text)) == list(content)
