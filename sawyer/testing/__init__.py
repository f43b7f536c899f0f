"""A network for the tests of programs that use Sawyer: `from sawyer.testing import StubNetwork`."""

from sawyer.testing.router import Answering
from sawyer.testing.stub import StubNetwork

__all__ = ["Answering", "StubNetwork"]
