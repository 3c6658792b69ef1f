import pytest

pytest.register_assert_rewrite("tests.proto.stream.segment_script")
