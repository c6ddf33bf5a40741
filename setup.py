"""The only build steps that pyproject.toml cannot express: cffi's builder, the launcher, and the abi3 tag."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def _launcher() -> None:
    """Compile the launcher into the package, of which it is a data file."""
    runpy.run_path(str(HERE / "_native/build.py"))["build_launcher"](HERE / "isolate/_launcher")


class BuildPy(build_py):
    """The package with its data files, the launcher among them. Not in the metadata: that needs no compiler."""

    def run(self) -> None:
        """Compile it first."""
        _launcher()
        super().run()


class BuildExt(build_ext):
    """The extension; and the launcher, for builds in place."""

    def run(self) -> None:
        """Both are of one build: each checks the other's stamp."""
        if self.inplace:
            _launcher()
        super().run()


setup(
    cffi_modules=["_native/build.py:ffi"],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
