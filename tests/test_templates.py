"""What pages and texts are filled from."""

import jinja2
import pytest

from lesionseg.templates import load_template, policy_hash


def test_a_hash_is_the_one_of_the_openssl_gives():
    # printf "alert(1)" | openssl dgst -sha256 -binary | base64
    assert policy_hash("alert(1)") == "sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI="


def test_a_page_escapes_what_is_filled_in_and_a_text_does_not(tmp_path, monkeypatch):
    package = tmp_path / "templates_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("page.html", "text.md.jinja"):
        (package / name).write_text("{{ word | twice }}\n")
    monkeypatch.syspath_prepend(tmp_path)
    page, text = (
        load_template(package.name, name, twice=lambda word: 2 * word)
        for name in ("page.html", "text.md.jinja")
    )
    assert (page.render(word="<"), text.render(word="<")) == ("&lt;&lt;", "<<")
    with pytest.raises(jinja2.UndefinedError):
        page.render()
