"""Whether a saved state is one of this optimizer's, before anything is loaded from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch_wprox.closure.guards import checked_groups

# What schedulers, weight averaging and torch itself write into a group beside its options.
_MARKS = {
    *("params", "param_names", "initial_lr", "swa_lr", "max_lr", "min_lr"),
    *("base_momentum", "max_momentum"),
}


def checked_saved_groups(
    state: Mapping[str, Any], section: str, present: Sequence[Mapping[str, Any]], name: str
) -> list[dict[str, Any]]:
    """Return the groups of a saved state if it is one of this optimizer's.

    Args:
        state: What was saved.
        section: Key of the optimizer's own part.
        present: The optimizer's groups.
        name: Of the optimizer, for messages.

    Raises:
        ValueError: It is corrupt, or another optimizer's, or a group would become another kind of
            block than it is. (How many groups and parameters there are the base class checks.)
    """
    groups = state.get("param_groups")
    if (
        not isinstance(state.get("state"), Mapping)
        or not isinstance(groups, Sequence)
        or not all(isinstance(g, Mapping) and isinstance(g.get("params"), Sequence) for g in groups)
        or not isinstance(state.get(section, {}), Mapping)
    ):
        raise ValueError(
            "the state is corrupt: it must have 'state' and 'param_groups', a list of dictionaries "
            f"with 'params', as {name}.state_dict() returns; got the keys {sorted(map(str, state))}"
        )
    if section not in state:
        known = _MARKS.union(*present)
        unknown = sorted({str(key) for g in groups for key in g if key not in known})
        unknown += sorted(str(key) for key in state if key not in ("state", "param_groups"))
        if unknown or state["state"]:
            raise ValueError(
                f"the state was saved by another optimizer than {name} (it has no {section!r}, but "
                f"{unknown or 'a state of every parameter'}): its options mean something else "
                "here. Load the model's weights and start this optimizer anew"
            )
    for index, (group, own) in enumerate(zip(groups, present, strict=False)):
        try:
            checked_groups([{**own, **group}])
        except (TypeError, ValueError) as wrong:
            raise ValueError(f"the state is corrupt, in group {index}: {wrong}") from wrong
        if _sizes(groups) == _sizes(present) and group.get("layout", own.get("layout")) != own.get(
            "layout"
        ):
            raise ValueError(
                f"the state was saved with layout={group['layout']!r} in group {index}, this "
                f"optimizer has layout={own['layout']!r} there: construct it with the same groups "
                "(a group may say its layout)"
            )
    return [dict(group) for group in groups]


def _sizes(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return how many parameters each group has."""
    return [len(group["params"]) for group in groups]
