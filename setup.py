"""Everything but editable installs is in pyproject.toml."""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """Installs ``editable/``, a folder with one package, so that its path is all that is installed."""

    def finalize_options(self) -> None:
        """Exchange the packages, whose folders have other names, for that one."""
        self.distribution.packages = ["skimattn"]
        self.distribution.package_dir = {"": "editable"}
        super().finalize_options()


setup(cmdclass={"editable_wheel": EditableWheel})
