"""Methods by name: what a setting means to an attention module. ``skip_softmax`` is the one that kernels have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..errors import expected
from .policy import PHASES, Phase, PhaseRule

if TYPE_CHECKING:
    from .config.settings import Setting


class Method(Protocol):
    """Makes the rules of a module out of what a configuration tells it."""

    def rules(self, setting: Setting, where: str) -> dict[Phase, PhaseRule]:
        """The rules by phase; a phase that is left out is dense.

        Args:
            setting: what the configuration says of the module.
            where: names the setting, for refusals.

        Raises:
            ArgumentError: the setting is not enough, or means nothing.
        """


_methods: dict[str, Method] = {}


def register_method(name: str, method: Method) -> None:
    """Let configurations use ``method`` by a name.

    Raises:
        ArgumentError: the name is taken.
    """
    if name in _methods:
        raise expected("name", f"one that is free, other than {', '.join(_methods)}", repr(name))
    _methods[name] = method


def method_named(name: str, key: str = "method") -> Method:
    """The method of that name.

    Raises:
        ArgumentError: there is none.
    """
    if name not in _methods:
        raise expected(key, f"one of {', '.join(_methods)}", repr(name))
    return _methods[name]


class SkipSoftmax:
    """BLASST (arXiv 2512.12087): a tile whose scores all lie far below the maximum so far is left out."""

    def rules(self, setting: Setting, where: str) -> dict[Phase, PhaseRule]:
        """A threshold is its own factor; a target becomes the factor that the fit of its phase gives."""
        rules: dict[Phase, PhaseRule] = {}
        for phase in PHASES:
            if (threshold := setting.threshold.get(phase)) is not None:
                rules[phase] = PhaseRule(threshold, length_power=0.0)
            elif (factor := setting.scale_factor.get(phase)) is not None:
                rules[phase] = PhaseRule(factor, _one(setting.length_power.get(phase, 1.0)))
            elif (target := setting.target_sparsity.get(phase)) is not None:
                rules[phase] = self._of_target(setting, phase, _one(target), where)
        return rules

    def _of_target(self, setting: Setting, phase: Phase, target: float, where: str) -> PhaseRule:
        fit = setting.fit.get(phase)
        if fit is None:
            raise expected(f"{where}fit.{phase}", "a fit for target_sparsity, such as calibrate makes", "none")
        if target == 0:
            return PhaseRule(0.0)
        if fit.sparsity is not None and not setting.extrapolate:
            low, high = fit.sparsity
            if not low <= target <= high:
                wanted = f"between {low:.3g} and {high:.3g}, where its fit was observed, or extrapolate=True"
                raise expected(f"{where}target_sparsity.{phase}", wanted, target)
        return PhaseRule(*fit.rule(target))


def _one(value: float | tuple[float, ...]) -> float:
    assert isinstance(value, float), "checked where settings are"
    return value


register_method("skip_softmax", SkipSoftmax())
