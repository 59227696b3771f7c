"""Files of the customer that have the names of modules of Python and of libraries."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arkloop.cli.serve import modules


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported in the test is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("name", ["email", "time", "click"])
@pytest.mark.parametrize("ending", ["", ".py"])
def test_a_file_with_the_name_of_a_loaded_module_leaves_it_alone(
    folder: Path, name: str, ending: str
) -> None:
    """Both are usable: what imports the library after the file gets the library."""
    library = importlib.import_module(name)
    (folder / f"{name}.py").write_text("OF_THE_CUSTOMER = True\n")

    module = modules.imported(f"{name}{ending}")

    assert module.OF_THE_CUSTOMER
    assert module is sys.modules[module.__name__]
    assert importlib.import_module(name) is library


@pytest.mark.parametrize("name", ["shop_of_a_test", "calendar"])
@pytest.mark.parametrize("ending", ["", ".py"])
def test_a_file_is_the_module_that_its_own_imports_find(
    folder: Path, name: str, ending: str
) -> None:
    """Two modules that import each other hold no copies of one another.

    The name may be that of a module of Python which is not loaded: the folder comes before it.
    """
    sys.modules.pop(name, None)
    (folder / f"{name}.py").write_text("import goods_of_a_test as goods\n")
    (folder / "goods_of_a_test.py").write_text(f"import {name} as shop\n")

    module = modules.imported(f"{name}{ending}")

    assert module is module.goods.shop
    assert module.__name__ == name
