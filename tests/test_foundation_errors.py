from __future__ import annotations

import sys

import pytest

import pertinent
from pertinent import errors
from pertinent.errors import DataError, MissingExtraError, PertinentError, missing_extra, need, shorten


def test_every_error_is_a_pertinent_error_and_ends_the_command_line_with_2() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert PertinentError in classes
    assert len(classes) >= 6
    for cls in classes:
        assert issubclass(cls, PertinentError)
        assert cls.exit_code == 2
        assert f"── {cls.__name__}" in str(errors.__doc__) or cls is PertinentError


def test_data_error_names_only_what_is_known() -> None:
    assert str(DataError("is empty")) == "is empty"
    assert str(DataError("is empty", path="a.csv")) == "a.csv: is empty"
    error = DataError("bad", path="a.csv", line=2, column="grade", value="x", fix="mend it")
    assert str(error) == "a.csv: line 2, column 'grade', value 'x': bad; mend it"
    assert (error.path, error.line, error.column, error.value) == ("a.csv", 2, "grade", "x")


def test_values_in_messages_stay_short_and_on_one_line() -> None:
    message = str(DataError("too long", value="x\n" * 500_000))
    assert len(message) < 200
    assert "\n" not in message
    assert "1000000 characters" in message


@pytest.mark.parametrize("value", ["", "a", "é" * 59, "a" * 1000, 3, None, b"\x00" * 300, ["a"] * 300])
def test_shorten_keeps_what_fits_and_says_how_much_it_cut(value: object) -> None:
    short = shorten(value)
    assert len(short) < 60 + 30
    assert short == repr(value) or "characters)" in short


def test_need_says_which_command_adds_the_package() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'pertinent\[train\]'") as caught:
        need("surely_not_installed.part", "train")
    assert isinstance(caught.value, ImportError)
    assert "surely_not_installed, which" in str(caught.value)


def test_need_does_not_hide_what_is_broken_inside_a_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        need("half_broken", "train")
    assert not isinstance(caught.value, MissingExtraError)
    assert caught.value.name == "nowhere_to_be_found"
    sys.modules.pop("half_broken", None)


def test_public_names_resolve_and_are_listed() -> None:
    light = set(pertinent.__all__) - {"Scorer", "__version__"}
    for name in light:
        assert getattr(pertinent, name).__name__ == name
        assert name in dir(pertinent)
    with pytest.raises(AttributeError, match="no attribute 'Scorrer'"):
        _ = pertinent.Scorrer


def test_a_package_that_cannot_be_imported_is_traced_to_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = missing_extra(ModuleNotFoundError(name="onnxscript.ir"))
    assert "pip install 'pertinent[train]'" in str(found)
    # There, so something inside it is broken; and a package that none of the extras brings.
    assert missing_extra(ModuleNotFoundError(name="numpy.unheard_of")) is None
    assert missing_extra(ModuleNotFoundError(name="unheard_of")) is None
    assert missing_extra(ImportError()) is None
