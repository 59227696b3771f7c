"""`/console`: the page and its files, as they are in the repository, for everybody."""

import hashlib
import json
import re
from pathlib import Path

from flask.testing import FlaskClient

from arkloop.api.console.pages import PAGE_SECURITY, console_files
from arkloop.shared.accounts import identity_errors
from arkloop.shared.audit.audit_log import ACTIONS
from tests.clients import error_of

STATIC = Path(__file__).parents[3] / "api" / "console" / "static"
MODULES = sorted(STATIC.rglob("*.js"))


def test_the_page_is_public_and_strict(client: FlaskClient) -> None:
    """Its policy allows nothing inline and nothing of another host; 304 for who has it."""
    response = client.get("/console")

    assert (200, PAGE_SECURITY) == (
        response.status_code,
        response.headers["Content-Security-Policy"],
    )
    assert "unsafe" not in PAGE_SECURITY
    assert "require-trusted-types-for 'script'" in PAGE_SECURITY
    again = client.get("/console", headers={"If-None-Match": response.headers["ETag"]})
    assert (304, b"") == (again.status_code, again.data)


def test_each_file_of_the_page_is_there(client: FlaskClient) -> None:
    """What the page loads has its type, and is kept by browsers."""
    page = client.get("/console").text
    addresses = re.findall(r'(?:src|href)="(console/[^"]+)"', page)

    assert len(addresses) > 4
    for address in addresses:
        response = client.get(f"/{address}")
        kind = "text/css" if address.endswith(".css") else "text/javascript"
        assert (200, f"{kind}; charset=utf-8") == (
            response.status_code,
            response.headers["Content-Type"],
        )
        assert "immutable" in response.headers["Cache-Control"]


def test_nothing_else_is_served(client: FlaskClient) -> None:
    """404 for other versions and for names that are none of the files."""
    version = console_files().version
    for path in ("0/app.js", f"{version}/index.html", f"{version}/../pages.py", f"{version}/lib"):
        assert (404, "http.not_found") == error_of(client.get(f"/console/{path}"))


def test_modules_import_files_that_exist() -> None:
    """Without an import map each import is a relative path; a page would stay blank otherwise."""
    for module in MODULES:
        for name in re.findall(r'(?:from|import\()\s*"([^"]+)"', module.read_text()):
            assert name.startswith("."), f"{module}: {name}"
            assert (module.parent / name).resolve().is_file(), f"{module}: {name}"


def test_no_module_makes_html_of_text() -> None:
    """Elements are made one by one: what would parse a text as HTML or code is not used."""
    sinks = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\("
    )
    own = [module for module in MODULES if module.parent.name != "vendor"]
    assert len(own) > 10
    assert [] == [str(module) for module in own if sinks.search(module.read_text())]


def test_actions_of_the_audit_log_are_all_of_the_service() -> None:
    """The filter of the page offers each, in the same order."""
    module = (STATIC / "settings" / "audit_actions.js").read_text()
    assert list(ACTIONS) == re.findall(r'^  "([a-z_.]+)",$', module, re.MULTILINE)


def test_vendored_files_are_those_of_the_packages() -> None:
    """They are unchanged since `make console-vendor` has noted the hash of each."""
    packages = json.loads((STATIC / "vendor" / "packages.json").read_text())
    noted = {
        name: file["sha256"]
        for package in packages.values()
        for name, file in package["files"].items()
    }
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (STATIC / "vendor").iterdir()
        if file.name != "packages.json"
    }
    assert noted == found


def test_each_way_in_which_a_provider_s_login_fails_has_words_of_its_own() -> None:
    """The browser comes back with the code alone; a person must know whether to try again."""
    module = (STATIC / "lib" / "provider_login.js").read_text()
    known = module.partition("const REFUSALS = {")[2].partition("}")[0]
    errors = (
        identity_errors.LoginStateInvalid,
        identity_errors.LoginRefused,
        identity_errors.LinkRequired,
        identity_errors.LinkRefused,
        identity_errors.ClientRefused,
        identity_errors.ClientSecretUnreadable,
        identity_errors.IdentityProviderUnavailable,
    )
    assert {error.code for error in errors} == set(re.findall(r'^  "([a-z_.]+)":', known, re.M))


def test_a_page_of_one_requires_the_permission_of_its_list() -> None:
    """It closes, too, when the person loses that permission while it is open."""
    rows = re.findall(r'\{ path: "([^"]+)"(.*)\}', (STATIC / "pages.js").read_text())
    permissions = {path: re.findall(r'permission: "([^"]+)"', row) for path, row in rows}
    ones = [path for path in permissions if "/:" in path]

    assert len(ones) > 4
    for path in ones:
        assert permissions[path.partition("/:")[0]] == permissions[path], path
