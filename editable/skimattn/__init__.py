"""The package as an editable install sees it: the folders of the checkout, which are not named as the modules are.

The folder above this one is on the path then. What setuptools would do otherwise is a finder that Python asks after the
path, where a checkout that is itself called ``skimattn`` hides the package from whoever stands beside it.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
__path__ = [str(_ROOT / "runtime"), str(_ROOT)]  # the second for codegen and templates
__file__ = str(_ROOT / "runtime" / "__init__.py")
exec(compile(Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
