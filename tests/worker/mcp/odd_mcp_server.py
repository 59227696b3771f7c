"""An MCP server over stdio that does what none should: `odd_mcp_server.py FOLDER`.

Written without the SDK, whose manners are too good. `FOLDER/descriptions.json` may change what
it says of its tools at any time; where it is a text and no list, that is an error. It does not
say so before all the files are there that `FOLDER/waits_for` names. `FOLDER/log` is what it was
asked.
"""

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NOTHING = {"type": "object"}
TOOLS = {
    "double": ("Doubles a number.", NUMBER),
    "environment": ("Tells about its process.", NOTHING),
    "refuse": ("Answers with isError.", NOTHING),
    "fail": ("Answers with an error of JSON-RPC.", NOTHING),
    "hang": ("Never answers.", NOTHING),
    "die": ("Ends the server.", NOTHING),
    "mumble": ("Prints nonsense before it answers.", NOTHING),
    "halve": ("Answers with half of an emoji.", NOTHING),
    "misspeak": ("Answers with a response without a result.", NOTHING),
    "flood": ("Answers with n MB.", NUMBER),
    "many": ("Answers with n values.", NUMBER),
    "picture": ("Answers with what is not text.", NOTHING),
    "photos": ("Answers with n images, of which the first is a resource.", NUMBER),
    "structure": ("Answers with structured content only.", NOTHING),
    "progress": ("Answers after n reports of its progress.", NUMBER),
    "stall": ("Reports progress once and never answers.", NOTHING),
    "nonsense": ("Reports progress that is none.", NOTHING),
    "ask": ("Asks for n forms, one after the other, and answers with the replies.", NUMBER),
    "ask_and_hang": ("Asks for a form, and never answers.", NOTHING),
    "visit": ("Fails until a page was visited.", NOTHING),
    "announce": ("Says that its tools have changed.", NOTHING),
    "have_child": ("Starts a process that outlives it.", NOTHING),
}


#: What the client replies to requests, by their ids.
replies: dict[str, "queue.Queue[dict[str, Any]]"] = defaultdict(queue.Queue)


def main() -> None:
    log({"pid": os.getpid()})
    for line in sys.stdin:
        message = json.loads(line)
        log(message)
        if "method" not in message:
            replies[message["id"]].put(message)
        elif "id" in message:
            # Each in its own thread: a call that hangs is no reason to hear nothing more.
            threading.Thread(target=answer, args=(message,), daemon=True).start()


def log(entry: dict[str, Any]) -> None:
    with (FOLDER / "log").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def answer(message: dict[str, Any]) -> None:
    match message["method"]:
        case "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "odd", "version": "1"},
            }
            say({"id": message["id"], "result": result})
        case "tools/list":
            list_tools(message["id"])
        case "tools/call":
            call(message["id"], message["params"])
        case _:
            say({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


def list_tools(number: Any) -> None:
    waits_for = FOLDER / "waits_for"
    (FOLDER / "asked").touch()
    while waits_for.exists() and not all(map(os.path.exists, waits_for.read_text().split())):
        time.sleep(0.01)
    changes = FOLDER / "descriptions.json"
    more: Any = json.loads(changes.read_text()) if changes.exists() else []
    if isinstance(more, str):
        say({"id": number, "error": {"code": -32000, "message": more}})
        return
    tools = [
        {"name": name, "description": text, "inputSchema": schema}
        for name, (text, schema) in TOOLS.items()
        if name not in [tool["name"] for tool in more if "instead" in tool]
    ]
    say({"id": number, "result": {"tools": tools + more}})


def call(number: Any, params: dict[str, Any]) -> None:
    arguments = params.get("arguments") or {}
    match params["name"]:
        case "double":
            text(number, str(2 * arguments["n"]))
        case "environment":
            about = {"environ": dict(os.environ), "folder": os.getcwd(), "argv": sys.argv[1:]}
            text(number, json.dumps(about | {"group": os.getpgid(0), "pid": os.getpid()}))
        case "refuse":
            text(number, "I would rather not.", isError=True)
        case "fail":
            say({"id": number, "error": {"code": -32000, "message": "It broke.", "data": "secret"}})
        case "die":
            os._exit(3)
        case "mumble":
            sys.stdout.write("Loading…\n{}\n[1, 2\n\n\x00\x01\n" + '{"jsonrpc": "2.0", "id": 99}\n')
            text(number, "well")
        case "halve":
            text(number, "half \ud83d")
        case "misspeak":
            say({"id": number})
        case "flood":
            text(number, "x" * arguments["n"] * 1_000_000)
        case "many":
            values = [0] * arguments["n"]
            say({"id": number, "result": {"content": [], "structuredContent": {"a": values}}})
        case "picture":
            image = {"type": "image", "mimeType": "image/png", "data": "AAAA" * 100}
            resource = {"uri": "file:///etc/passwd", "text": "root:x:0:0"}
            content = [image, {"type": "resource", "resource": resource}]
            say({"id": number, "result": {"content": content}})
        case "photos":
            photo = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30)).decode()
            image = {"type": "image", "mimeType": "text/html", "data": photo}
            resource = {"uri": "file:///photo", "mimeType": "image/png", "blob": photo}
            first = {"type": "resource", "resource": resource}
            content = [first, {"type": "text", "text": "click"}, *[image] * (arguments["n"] - 1)]
            say({"id": number, "result": {"content": content}})
        case "structure":
            say({"id": number, "result": {"content": [], "structuredContent": {"answer": 42}}})
        case "progress":
            for done in range(arguments["n"]):
                time.sleep(0.2)
                progress(params, progress=done + 1, total=arguments["n"], message="on" * 900)
            time.sleep(0.2)
            text(number, "done")
        case "stall":
            progress(params, progress=1)
        case "nonsense":
            for value in (None, True, "1", 10**400, float("inf")):
                progress(params, progress=value, total=[], message={})
            text(number, "done")
        case "ask":
            text(number, json.dumps([ask(f"{number}/{n}") for n in range(arguments["n"])]))
        case "ask_and_hang":
            ask(str(number))
            (FOLDER / "hangs").touch()
        case "visit" if (FOLDER / "visited").exists():
            text(number, "visited")
        case "visit":
            (FOLDER / "visited").touch()
            page = {"mode": "url", "message": "Log in.", "url": "https://example.com/login"}
            data = {"elicitations": [{**page, "elicitationId": "7"}]}
            say({"id": number, "error": {"code": -32042, "message": "Visit", "data": data}})
        case "announce":
            say({"method": "notifications/tools/list_changed"})
            text(number, "said")
        case "have_child":
            command = ("sh", "-c", "trap '' TERM; sleep 300")
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            text(number, str(child.pid))


def ask(number: str) -> Any:
    """Ask for a form, as servers of the protocols before 2026-07-28 do, and wait for the reply."""
    fields = {"type": "object", "properties": {"seats": {"type": "integer"}}}
    params = {"message": f"How many, {number}?", "requestedSchema": fields}
    say({"id": number, "method": "elicitation/create", "params": params})
    reply = replies[number].get()
    return reply.get("result", reply.get("error"))


def progress(params: dict[str, Any], **reported: Any) -> None:
    token = params["_meta"]["progressToken"]
    say({"method": "notifications/progress", "params": {"progressToken": token, **reported}})


def text(number: Any, words: str, **more: Any) -> None:
    say({"id": number, "result": {"content": [{"type": "text", "text": words}], **more}})


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


main()
