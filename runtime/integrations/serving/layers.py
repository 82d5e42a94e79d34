"""Which attention layer of an engine is told what: names as transformers has them, and as engines have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ...errors import expected
from ...sparse import SkipSoftmaxConfig
from ...sparse.config.patterns import matches
from ...sparse.policy import LayerPolicy, PhaseRule

_ATTENTION = ".attn"  # what engines call their layer within the module that transformers has too


def names_of(layer: str) -> tuple[str, ...]:
    """Names that patterns may mean a layer by: ``model.layers.0.self_attn.attn``, and without the end."""
    return (layer.removesuffix(_ATTENTION), layer) if layer.endswith(_ATTENTION) else (layer,)


def policies_of(config: SkipSoftmaxConfig, layers: Iterable[str], *, all_here: bool = True) -> dict[str, LayerPolicy]:
    """The policies of the layers that skip, by name.

    Patterns of modules match engines' names too. Names of transformers' classes, which ``targets`` may have, are not
    known here: as targets they mean every layer, as patterns they are refused.

    Args:
        config: what is told.
        layers: their names.
        all_here: whether these are all layers of the model, and not those of one pipeline stage.

    Raises:
        ArgumentError: a pattern matches no layer, no layer is told anything, or a setting cannot be.
    """
    layers = list(layers)
    for key, patterns in (("patterns", config.patterns), ("ignore", config.ignore)):
        for pattern in patterns if all_here else ():
            if pattern != "default" and not any(_holds(pattern, layer) for layer in layers):
                wanted = f"patterns of layers, such as {names_of(layers[0])[0]}" if layers else "no patterns"
                raise expected(f"{key}.{pattern}", wanted, "one that no attention layer of the model matches")
    by_name = [target for target in config.targets if not _is_class(target)]
    chosen = [layer for layer in layers if not by_name or any(_holds(target, layer) for target in by_name)]
    found = {layer: policy for layer in chosen if (policy := _policy(config, layer)) is not None}
    if not found and all_here:
        raise expected("config", f"a setting for at least one of {len(layers)} attention layers", "none")
    return found


def _holds(pattern: str, layer: str) -> bool:
    return any(matches(pattern, name) for name in names_of(layer))


def _is_class(target: str) -> bool:
    return target.isidentifier() and target[0].isupper()


def _policy(config: SkipSoftmaxConfig, layer: str) -> LayerPolicy | None:
    """By the first of the layer's names that the configuration says something of by pattern, else by default."""
    first, *others = names_of(layer)
    return config.policy_for(first, others[0] if others else "")


def of_rank(policy: LayerPolicy, layer: str, heads: int, rank: int, ranks: int) -> LayerPolicy:
    """The policy with the heads of one rank of tensor parallelism.

    Args:
        policy: of the whole layer.
        layer: its name.
        heads: query heads of this rank.
        rank: of tensor parallelism.
        ranks: how many there are.

    Raises:
        ArgumentError: it has factors by head, and not as many as there are heads.
    """
    rules = dict(policy.rules)
    for phase, rule in rules.items():
        if not isinstance(rule.factor, tuple):
            continue
        if len(rule.factor) != heads * ranks:
            wanted = f"one number for each of {heads * ranks} query heads"
            raise expected(f"{layer}: {phase}", wanted, len(rule.factor))
        rules[phase] = PhaseRule(rule.factor[rank * heads : (rank + 1) * heads], rule.length_power)
    return replace(policy, rules=rules)
