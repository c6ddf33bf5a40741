"""Capabilities: the five sets, securebits, and the capabilities of files."""

from isolate.capabilities.part import Cap as Cap
from isolate.capabilities.part import Capabilities as Capabilities
from isolate.capabilities.part import SecureBits as SecureBits
