import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cftjax.cft import spaces
from cftjax.runtime import memory


def resident(file):
    """Bytes of a mapped file that count as this process's memory."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return 1024 * sum(int(each.split("Rss:")[1].split()[0]) for each in maps if str(file) in each)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is resident")
def test_pages_of_a_map_that_have_been_read_are_let_go_and_read_the_same_again(tmp_path):
    file, content = tmp_path / "z.npy", np.arange(2**22, dtype=np.float32).reshape(-1, 64)
    np.save(file, content)
    mapped = np.load(file, mmap_mode="r")
    assert mapped.sum(dtype=np.float64) == content.sum(dtype=np.float64)
    assert resident(file) > content.nbytes / 2
    memory.release(mapped)
    assert resident(file) < content.nbytes / 16
    for rows, block in spaces.blocks(mapped):
        np.testing.assert_array_equal(block, content[rows])
    assert resident(file) < content.nbytes / 16


def test_what_is_no_map_that_is_only_read_stays(tmp_path):
    own = np.ones(8, np.float32)
    memory.release(own)
    np.save(tmp_path / "z.npy", own)
    written = np.load(tmp_path / "z.npy", mmap_mode="r+")
    written[0] = 3
    memory.release(written)
    assert written[0] == 3
