"""Builds: a Dockerfile or a recipe becomes an image, layer by layer, in sandboxes of ours and without a daemon."""

from isolate.build.carry import Built as Built
from isolate.build.carry import Step as Step
from isolate.build.carry import forget as forget
from isolate.build.context import Context as Context
from isolate.build.errors import BuildError as BuildError
from isolate.build.ignore import Ignore as Ignore
from isolate.build.ignore import IgnoreError as IgnoreError
from isolate.build.instructions import Mount as Mount
from isolate.build.recipe import Dockerfile as Dockerfile
from isolate.build.recipe import Recipe as Recipe
from isolate.build.stages import Stage as Stage
from isolate.build.syntax import DockerfileError as DockerfileError

__all__ = [
    "BuildError",
    "Built",
    "Context",
    "Dockerfile",
    "DockerfileError",
    "Ignore",
    "IgnoreError",
    "Mount",
    "Recipe",
    "Stage",
    "Step",
    "forget",
]
