"""Time one training step of the same CLIP in three libraries, float32 and bfloat16 autocast.

    python benchmarks/clip_step.py                      # prints the table, writes results/benchmarks/clip_step.json
    python benchmarks/clip_step.py --rounds 20 --threads 2 --device cuda --batch 256

A step is forward, contrastive loss, backward and AdamW. The contenders run in turn within each round, in
another order each time, so that a busy machine slows all of them; ratios are taken within a round, and
their median over the rounds is reported with the quartiles. Beside the time on the clock stands processor
time (on a CPU), which other programs disturb less. Takes about a minute on two quiet cores.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # before torch: spinning threads measure the neighbours
import argparse, json, platform, random, statistics, time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlp_course.data.pairs import Pairs, Tokenized
from vlp_course.models.clip_whole import CLIP, CLIPConfig
from vlp_course.nn.clip_towers import TowerConfig

TARGET = Path(__file__).resolve().parents[1] / "results/benchmarks/clip_step.json"
SHAPES = dict(width=256, layers=6, heads=4, image_size=96, patch_size=12, context=32, vocab_size=8192, embed_dim=256)
HEAD = "| library | precision | ms a step | CPU-ms | GFLOP/s | time / ours in bfloat16 (quartiles) | CPU time / ours |"


def batch_of(size: int, s: dict, device: str) -> Pairs:
    """Random pictures, and captions that fill the context and end in the largest id."""
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(1, s["vocab_size"] - 1, (size, s["context"]), generator=made)
    ids[:, -1] = s["vocab_size"] - 1
    text = Tokenized(ids, torch.ones_like(ids, dtype=torch.bool))
    image = torch.rand(size, 3, s["image_size"], s["image_size"], generator=made)
    return Pairs(image, [""] * size, text, torch.zeros(size, dtype=torch.long)).to(device)


def ours(s: dict, pairs: Pairs):
    """(model, function that gives its loss)"""
    tower = TowerConfig(s["width"], s["layers"], s["heads"], 4 * s["width"])
    model = CLIP(CLIPConfig(tower, tower, s["image_size"], s["patch_size"], s["context"], s["vocab_size"],
                            s["embed_dim"], eos_id=s["vocab_size"] - 1))
    return model, lambda: model(pairs, step=0, generator=torch.Generator()).losses["itc"]


def hugging_face(s: dict, pairs: Pairs):
    """transformers' CLIPModel with its default attention (sdpa)."""
    from transformers import CLIPConfig as Config, CLIPModel
    tower = dict(hidden_size=s["width"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
                 intermediate_size=4 * s["width"])
    model = CLIPModel(Config(
        projection_dim=s["embed_dim"],
        vision_config=dict(**tower, image_size=s["image_size"], patch_size=s["patch_size"]),
        text_config=dict(**tower, vocab_size=s["vocab_size"], max_position_embeddings=s["context"], bos_token_id=0,
                         eos_token_id=s["vocab_size"] - 1)))
    assert model.config._attn_implementation == "sdpa"
    inputs = dict(input_ids=pairs.text.ids, attention_mask=pairs.text.mask.long(), pixel_values=pairs.image)
    return model, lambda: model(**inputs, return_loss=True).loss


def open_clip(s: dict, pairs: Pairs):
    """open_clip's CLIP and ClipLoss."""
    from open_clip import ClipLoss
    from open_clip.model import CLIP as OpenCLIP
    tower = dict(width=s["width"], layers=s["layers"])
    model = OpenCLIP(
        s["embed_dim"], quick_gelu=True,
        vision_cfg=dict(**tower, head_width=s["width"] // s["heads"], patch_size=s["patch_size"],
                        image_size=s["image_size"]),
        text_cfg=dict(**tower, heads=s["heads"], context_length=s["context"], vocab_size=s["vocab_size"]))
    loss = ClipLoss()
    return model, lambda: loss(*model(pairs.image, pairs.text.ids))


def stepper(make, shapes: dict, pairs: Pairs, device: str, bf16: bool):
    """(number of parameters, a function that does one training step and returns its (wall, processor) seconds)"""
    torch.manual_seed(0)
    model, loss = make(shapes, pairs)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def step() -> tuple[float, float]:
        wait(); start, busy = time.perf_counter(), time.process_time()
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step(); optimizer.zero_grad(set_to_none=True)
        wait()
        return time.perf_counter() - start, time.process_time() - busy
    return sum(p.numel() for p in model.parameters()), step


def flops(shapes: dict, pairs: Pairs) -> int:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    _, loss = ours(shapes, pairs.to("cpu"))
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops()


def machine(device: str) -> dict:
    """What the figures depend on."""
    import open_clip as oc, transformers
    name, flags = platform.processor(), []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        info = {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}
        name, flags = info.get("model name", name), info.get("flags", "").split()
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    open_clip=oc.__version__)
    return dict(cpu=name, cores=os.cpu_count(), threads=torch.get_num_threads(), device=device,
                gpu=torch.cuda.get_device_name() if device.startswith("cuda") else None,
                bf16_units=[f for f in ("avx512_bf16", "amx_bf16") if f in flags],
                load=round(os.getloadavg()[0], 1), versions=versions)


def row(library: str, bf16: bool, times: list, ours: list, work: int) -> dict:
    """One line of the table; `times` and `ours` hold (wall, processor) seconds by round."""
    (wall, cpu), (wall_0, cpu_0) = zip(*times), zip(*ours)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(wall, wall_0)], n=4)
    return dict(library=library, precision="bfloat16" if bf16 else "float32",
                ms=round(1000 * statistics.median(wall), 1), cpu_ms=round(1000 * statistics.median(cpu), 1),
                gflops=round(work / statistics.median(wall) / 1e9), ratio=round(middle, 3),
                quartiles=[round(low, 3), round(high, 3)],
                cpu_ratio=round(statistics.median(a / b for a, b in zip(cpu, cpu_0)), 3))


def show(rows: list[dict]) -> None:
    """The table, and the two ratios that performance is judged by."""
    print(HEAD + "\n" + "|---" * 7 + "|")
    for r in rows:
        print(f"| {r['library']} | {r['precision']} | {r['ms']} | {r['cpu_ms']} | {r['gflops']} | {r['ratio']:.2f} "
              f"({r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f}) | {r['cpu_ratio']:.2f} |")
    print()
    others = [r for r in rows if r["library"] != "ours"]
    for key, clock in (("ratio", "by the clock"), ("cpu_ratio", "in processor time")):
        best, plain = min(r[key] for r in others), min(r[key] for r in others if r["precision"] == "float32")
        print(f"ours in bfloat16, {clock}: {best:.2f} times as fast as the best of the others, "
              f"{plain:.2f} times as fast as the best float32 default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = batch_of(args.batch, SHAPES, args.device)
    libraries = dict(ours=ours, transformers=hugging_face, open_clip=open_clip)
    made = {(name, bf16): stepper(make, SHAPES, pairs, args.device, bf16)
            for bf16 in (False, True) for name, make in libraries.items()}
    sizes = {parameters for parameters, _ in made.values()}
    if len(sizes) != 1:
        raise SystemExit(f"the three models are not the same: {sorted(sizes)} parameters")
    seconds, order = {key: [] for key in made}, list(made)
    for turn in range(args.rounds + 1):
        random.Random(turn).shuffle(order)
        for key in order:
            taken = made[key][1]()
            if turn:                                    # the first round warms up
                seconds[key].append(taken)
    work, host = flops(SHAPES, pairs), machine(args.device)
    rows = [row(name, bf16, times, seconds["ours", True], work) for (name, bf16), times in seconds.items()]
    print(f"one training step of a CLIP with {sizes.pop():,} parameters, batch {args.batch}, {work / 1e9:.0f} GFLOP; "
          f"{args.rounds} rounds\n{host['gpu'] or host['cpu']}, {host['threads']} threads, load {host['load']}\n")
    show(rows)
    if not args.no_save:
        result = dict(shapes=SHAPES, batch=args.batch, rounds=args.rounds, flop_a_step=work, machine=host, rows=rows)
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
