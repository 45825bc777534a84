"""What the adapters' tests share: no network, and tiny models of other libraries."""

from __future__ import annotations

import socket

import pytest

from landscape.tasks._extras import optional

optional("transformers", "hf")  # Also mends a torchvision without its operators.


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a socket of any kind is an error."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a socket was opened: {arguments} {options}")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
