"""One of two processes of the DDP row: ``python -m tests.interop.ddp_worker RANK FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dcn_plugin as dcn
from tests.interop.probe import IMAGES, SIZE, assert_masks_act, make
from tests.nets import SmallNet

SEEDS = (3, 4)  # of the masks on rank 0 and rank 1, where they differ


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    report: dict[str, object] = {}

    # Same seed on both ranks, as it should be. Eval mode: batch statistics of half a batch are other statistics.
    model = make("batch norm")
    ddp = DistributedDataParallel(model)
    assert_masks_act(model, IMAGES[rank : rank + 1], call=ddp)
    dcn.verify(model)
    report["masks"] = {key: value for key, value in model.state_dict().items() if value.dtype == torch.bool}
    report["gradients"] = {name: p.grad for name, p in model.named_parameters()}

    # Training, buffers broadcast from rank 0 in each step.
    ddp.train()
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        assert_masks_act(model, torch.cat([IMAGES, -IMAGES])[rank::2], call=ddp)
        optimizer.step()
    report["trained"] = {key: value.clone() for key, value in model.state_dict().items()}
    dcn.verify(model)

    # A checkpoint looks through the wrapper.
    path = folder / "net.safetensors"
    if rank == 0:
        dcn.save_checkpoint(ddp, path)
    dist.barrier()
    again = DistributedDataParallel(make("batch norm", seed=9))
    dcn.load_checkpoint(path, again, inplace=True)
    report["loaded"] = again.module.state_dict()

    # Another seed on rank 1: rank 0's masks are broadcast like every buffer, and verify notices.
    other = dcn.defectify(SmallNet(), "all", input_size=SIZE, seed=SEEDS[rank])
    DistributedDataParallel(other)
    report["other"] = {key: value for key, value in other.state_dict().items() if value.dtype == torch.bool}
    try:
        dcn.verify(other)
        report["complaint"] = ""
    except dcn.errors.MaskLostError as error:
        report["complaint"] = str(error)
    torch.save(report, folder / f"report{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
