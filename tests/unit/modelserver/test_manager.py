"""The life of versions: what is called for comes, even while it is going; something serves all the while."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from launchpad.modelserver.config import ModelSettings, VersionPolicy
from launchpad.modelserver.manager import ManagerOptions, ModelManager, State
from launchpad.modelserver.status import Code, ServingError


class Held:
    """A servable that a request holds until it lets go."""

    def __init__(self, number: int, busy: bool) -> None:
        self.number = number
        self._busy = busy
        self._waiting: list[Any] = []

    def when_idle(self, call: Any) -> None:
        if self._busy:
            self._waiting.append(call)
        else:
            call()

    def let_go(self) -> None:
        self._busy = False
        for call in self._waiting:
            call()

    def close(self) -> None:
        pass


def settings(folder: Path, *numbers: int) -> dict[str, ModelSettings]:
    return {"m": ModelSettings("m", str(folder), VersionPolicy(specific=frozenset(numbers)), {})}


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("again", [(1,), (1, 2)], ids=["instead of the other", "beside the other"])
def test_a_version_that_is_called_for_again_while_it_unloads_comes_back_and_one_serves_all_the_while(tmp_path, again):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
    loaded: list[Held] = []
    lock = threading.Lock()

    def load(_: str, number: int, __: str) -> Any:
        with lock:
            loaded.append(Held(number, busy=not loaded))
            return loaded[-1]

    async def story() -> None:
        manager = ModelManager(load, ManagerOptions(file_system_poll_wait_seconds=0))

        def state(number: int) -> State | None:
            return next((v.state for v in manager.status("m") if v.number == number), None)

        async def serve(*numbers: int) -> None:
            manager.configure(settings(tmp_path, *numbers))
            await manager.poll_once()

        await serve(1)
        await until(lambda: state(1) is State.AVAILABLE)
        await serve(2)
        await until(lambda: state(1) is State.UNLOADING)  # a request still holds it
        await serve(*again)
        assert manager.find("m").number == 2
        loaded[0].let_go()
        await until(lambda: state(1) is State.AVAILABLE)
        wanted = State.AVAILABLE if 2 in again else State.END
        await until(lambda: state(2) is wanted)

    asyncio.run(story())


@pytest.mark.parametrize("noun", ["servable", "model"])
def test_a_model_that_cannot_be_loaded_is_told_in_the_words_of_the_original(tmp_path: Path, noun: str) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()

    def load(_: str, number: int, __: str) -> Any:
        raise ServingError(Code.NOT_FOUND, f"no file {number}")

    async def story() -> None:
        manager = ModelManager(load, ManagerOptions(max_num_load_retries=0))
        new = manager.configure(settings(tmp_path, 1, 2))
        await manager.poll_once()
        await manager.wait_until_available(new, noun)

    with pytest.raises(ServingError) as raised:
        asyncio.run(story())
    assert str(raised.value) == (
        f"UNKNOWN: 2 {noun}(s) did not become available: "
        "{{{name: m version: 2} due to error: NOT_FOUND: no file 2}, "
        "{{name: m version: 1} due to error: NOT_FOUND: no file 1}, }"
    )
