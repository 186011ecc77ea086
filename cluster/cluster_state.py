"""What a Ray cluster looks like at the moment: nodes, resources and the actors of this run."""

import threading
from typing import Any

DEADLINE_S = 5.0
"""The head may be what died: asking it must not hold up anything."""
MOST_ACTORS = 200


def cluster_state() -> dict[str, Any]:
    """Nodes, resources in all and free, and actors, living and dead; `error` where Ray is gone."""
    found: dict[str, Any] = {}

    def ask() -> None:
        try:
            found.update(_asked())
        except Exception as error:  # noqa: BLE001 - the state is a help, never a new failure
            found["error"] = f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=ask, daemon=True, name="cluster-state")
    thread.start()
    thread.join(DEADLINE_S)
    return dict(found) or {"error": f"Ray did not answer within {DEADLINE_S:.0f} s"}


def _asked() -> dict[str, Any]:
    import ray
    from ray._private.state import actors  # needs no dashboard, as the public list does

    if not ray.is_initialized():
        return {"error": "Ray was not running"}
    actors_now = list(actors().values())[-MOST_ACTORS:]
    return {
        "nodes": [_node(node) for node in ray.nodes()],
        "resources": ray.cluster_resources(),
        "free": ray.available_resources(),
        "actors": [_actor(actor) for actor in actors_now],
    }


def _node(node: dict[str, Any]) -> dict[str, Any]:
    kept = ("NodeID", "Alive", "NodeManagerAddress", "Resources", "Labels", "DeathReasonMessage")
    return {name: node.get(name) for name in kept}


def _actor(actor: dict[str, Any]) -> dict[str, Any]:
    kept = ("ActorClassName", "Name", "State", "Pid", "NumRestarts", "DeathCause", "ReprName")
    return {name: str(actor[name]) for name in kept if actor.get(name) not in (None, "")}
