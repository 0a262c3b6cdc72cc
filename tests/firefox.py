"""Firefox without a window, driven by WebDriver BiDi, which it speaks itself: no driver beside it.

https://w3c.github.io/webdriver-bidi/
"""

import asyncio
import contextlib
import itertools
import json
import subprocess

import aiohttp

WAIT = 120  # seconds: the machine may have much else to do


class Page:
    """A tab; every call waits for its answer."""

    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.context = None

    async def ask(self, method, **params):
        """The result of a command.

        Raises:
            RuntimeError: Firefox refuses it.
        """
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:  # events come between
            answer = await self._socket.receive_json(timeout=WAIT)
            if answer.get("id") == number:
                if answer["type"] == "error":
                    raise RuntimeError(answer["message"])
                return answer["result"]

    async def evaluate(self, expression):
        """What an expression gives in the page, with what it promises awaited."""
        answer = await self.ask(
            "script.evaluate",
            expression=expression,
            target={"context": self.context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return answer["result"]

    async def wait_for(self, expression):
        """Return when an expression is true."""
        async with asyncio.timeout(WAIT):
            while not (await self.evaluate(f"Boolean({expression})"))["value"]:
                await asyncio.sleep(0.1)

    async def set_files(self, expression, paths):
        """Give files to the input that an expression finds, as a user chooses them."""
        element = await self.evaluate(expression)
        await self.ask(
            "input.setFiles",
            context=self.context,
            element={"sharedId": element["sharedId"]},
            files=[str(path) for path in paths],
        )


@contextlib.asynccontextmanager
async def opened(program, url, profile):
    """A page that has loaded, in a Firefox of its own.

    Args:
        program: The path of firefox.
        url: Of the page.
        profile: An empty folder.
    """
    command = [program, "--headless", "--no-remote", "--profile", str(profile)]
    command += ["--remote-debugging-port", "0", "about:blank"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as firefox:
        try:
            address = await _address_in(profile / "WebDriverBiDiServer.json")
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{address}/session", max_msg_size=0) as socket,
            ):
                page = Page(socket)
                await page.ask("session.new", capabilities={})
                tree = await page.ask("browsingContext.getTree")
                page.context = tree["contexts"][0]["context"]
                where = {"context": page.context, "url": url, "wait": "complete"}
                await page.ask("browsingContext.navigate", **where)
                yield page
        finally:
            firefox.terminate()


async def _address_in(path):
    """The address in a file, which Firefox writes when it can be asked."""
    async with asyncio.timeout(WAIT):
        while True:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found = json.loads(path.read_text())
                return f"ws://{found['ws_host']}:{found['ws_port']}"
            await asyncio.sleep(0.1)
