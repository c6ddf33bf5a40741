"""Capabilities: the five sets, securebits, and the capabilities of files."""

from isolate.capabilities.caps import Cap as Cap
from isolate.capabilities.caps import SecureBits as SecureBits
from isolate.capabilities.part import Capabilities as Capabilities
