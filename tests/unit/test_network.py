"""The interface of an address, and the variable that gloo reads."""

import socket

import psutil

from cluster.network import VARIABLE, interface_of, use_node_interface


def own_addresses() -> list[tuple[str, str]]:
    return [
        (name, found.address)
        for name, addresses in psutil.net_if_addrs().items()
        for found in addresses
        if found.family == socket.AF_INET
    ]


def test_the_interface_of_each_address():
    assert own_addresses(), "this host has no network at all"
    for name, address in own_addresses():
        assert interface_of(address) == name
    assert interface_of("203.0.113.77") is None
    assert interface_of("") is None


def test_the_variable_is_set_from_what_ray_tells_its_workers(monkeypatch):
    name, address = own_addresses()[0]
    # Set before it is deleted, so that it is put back as it was.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("sys.argv", ["worker.py", f"--node-ip-address={address}", "--x=1"])
    use_node_interface()
    import os

    assert os.environ[VARIABLE] == name


def test_what_somebody_has_chosen_stays(monkeypatch):
    import os

    _, address = own_addresses()[0]
    monkeypatch.setenv(VARIABLE, "ib0")
    monkeypatch.setattr("sys.argv", ["worker.py", f"--node-ip-address={address}"])
    use_node_interface()
    assert os.environ[VARIABLE] == "ib0"
