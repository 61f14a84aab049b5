"""Compiles every CUDA kernel with nvcc and reads what it takes of a GPU; no GPU is needed for that."""

import pytest

from tests.cuda_resources import (
    ARCHITECTURES,
    SOURCES,
    TABLE,
    Use,
    above,
    compile_kernels,
    find_nvcc,
    nvcc_version,
    parse,
    read_table,
    spilled,
    table_text,
)


@pytest.mark.nvcc
@pytest.mark.skipif(find_nvcc() is None, reason="nvcc not found; `make nvcc` installs it from PyPI")
@pytest.mark.parametrize("source", SOURCES, ids=lambda f: f.stem)
def test_kernel_compiles(source, tmp_path):
    """Nothing is spilled; with the nvcc of the table, no kernel takes more registers or shared memory than there."""
    nvcc = find_nvcc()
    compiled, output = compile_kernels(nvcc, source, ARCHITECTURES, tmp_path)
    assert compiled, output
    uses = parse(output)
    assert all(set(by_architecture) == set(ARCHITECTURES) for by_architecture in uses.values())
    assert spilled(uses) == []
    version, table = read_table()
    if nvcc_version(nvcc) == version:
        more = above(uses, table.get(source.stem, {}))
        assert more == [], "where that is meant, `python -m tests.cuda_resources` writes the table anew"


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8unlearnx4cuda12begin_kernelEv' for 'sm_80'
ptxas info    : Function properties for _ZN8unlearnx4cuda12begin_kernelEv
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers{shared}, 448 bytes cmem[0]
ptxas info    : Compile time = 62.966 ms
"""


def report(registers=40, shared=16, stack=0, stores=0, loads=0):
    memory = f", {shared} bytes smem" if shared else ""
    return REPORT.format(registers=registers, shared=memory, stack=stack, stores=stores, loads=loads)


def test_report_of_the_compiler():
    assert parse(report()) == {"begin_kernel": {"sm_80": Use(40, 16)}}
    assert parse(report(shared=0)) == {"begin_kernel": {"sm_80": Use(40, 0)}}
    assert parse(report(stack=8, stores=4, loads=12)) == {"begin_kernel": {"sm_80": Use(40, 16, 8, 16)}}
    with pytest.raises(ValueError, match="unknown"):
        parse(report().replace("Function properties", "Properties"))


@pytest.mark.parametrize("local", [{"stack": 8}, {"stores": 4}, {"loads": 4}])
def test_local_memory_is_found(local):
    assert spilled(parse(report())) == []
    assert spilled(parse(report(**local)))[0].startswith("begin_kernel on sm_80")


def test_more_than_the_table_is_found():
    table = parse(report())
    assert above(parse(report(registers=39, shared=0)), table) == []
    assert "41 registers" in above(parse(report(registers=41)), table)[0]
    assert "17 bytes" in above(parse(report(shared=17)), table)[0]
    assert above({}, table) == above(table, {}) == ["begin_kernel: in one of table and sources only"]


def test_table_has_every_file_and_is_as_written():
    version, table = read_table()
    assert list(table) == [source.stem for source in SOURCES]
    assert all(set(uses) == set(ARCHITECTURES) for kernels in table.values() for uses in kernels.values())
    assert TABLE.read_text() == table_text(version, table)
