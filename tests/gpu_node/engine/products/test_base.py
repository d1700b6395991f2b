import pytest
import torch

from gpu_node.engine.products.base import QuantisedWeight, joined, pack_nibbles, row_tiles


def four_bits(rows=6, columns=64, group=32, minima=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    scales = torch.rand(rows, columns // group, generator=generator).half()
    low = torch.randn(rows, columns // group, generator=generator).half() if minima else None
    return codes, QuantisedWeight(pack_nibbles(codes, group), scales, low, group, 4, (rows, columns))


def test_nibbles_lie_as_in_gguf():
    codes = torch.zeros(1, 32, dtype=torch.int64)
    codes[0, 3], codes[0, 19] = 5, 9  # column j and j + 16 share a byte
    packed = pack_nibbles(codes, 32)
    assert packed[0, 3] == 5 | 9 << 4
    assert packed.count_nonzero() == 1


def test_codes_come_back_as_they_were_packed():
    codes, weight = four_bits()
    assert torch.equal(weight.unpacked().long(), codes)


def test_dequantised_is_code_times_scale_plus_minimum():
    codes, weight = four_bits(group=16)
    wanted = codes.float() * weight.scales.float().repeat_interleave(16, 1)
    wanted += weight.minima.float().repeat_interleave(16, 1)
    assert torch.equal(weight.dequantised(), wanted)


def test_q8_0_needs_no_minima():
    codes = torch.randint(-127, 128, (4, 64)).to(torch.int8)
    scales = torch.rand(4, 2).half()
    weight = QuantisedWeight(codes, scales, None, 32, 8, (4, 64))
    assert torch.equal(weight.dequantised(), codes.float() * scales.float().repeat_interleave(32, 1))
    assert weight.bytes == 4 * 64 + 4 * 2 * 2


def test_selected_rows_are_those_rows():
    _, weight = four_bits()
    some = torch.tensor([4, 0, 4])
    assert torch.equal(weight.select(some).dequantised(), weight.dequantised()[some])
    assert torch.equal(weight.select(slice(2, 5)).dequantised(), weight.dequantised()[2:5])


def test_joined_parts_lie_below_each_other():
    parts = [four_bits(rows=rows, seed=rows)[1] for rows in (2, 3)]
    together = joined(parts)
    assert torch.equal(together.dequantised(), torch.cat([part.dequantised() for part in parts]))


def test_parts_that_are_held_differently_stay_apart():
    assert joined([four_bits()[1], four_bits(minima=False)[1]]) is None
    assert joined([four_bits()[1], four_bits(group=16)[1]]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": 24},
        {"shape": (6, 32)},
        {"bits": 8},
        {"scales": torch.ones(6, 1)},
        {"minima": torch.ones(6, 3)},
        {"codes": torch.zeros(6, 32, dtype=torch.int8)},
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong):
    _, good = four_bits()
    parts = {name: getattr(good, name) for name in ("codes", "scales", "minima", "group", "bits", "shape")}
    with pytest.raises(ValueError):
        QuantisedWeight(**parts | wrong)


def test_tiles_cover_every_row_once():
    tiles = row_tiles(49152, 576)
    assert [row for tile in tiles for row in range(tile.start, tile.stop)] == list(range(49152))
    assert len(tiles) > 50
