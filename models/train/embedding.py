"""Train `duet-tiny-embed`: a Qwen3-shaped text embedding for demonstration, on one CPU core in about ten minutes.

    pip install -r models/train/requirements.txt
    python models/train/embedding.py --out models/embedded/duet-tiny-embed

Sentences are made from templates whose slots have aligned Chinese and English words, so that paraphrases and translations
are known by construction. Contrastive loss (InfoNCE, arXiv:1807.03748) over the batch; other fillings of the same template
are the hard negatives. One filling in ten (by hash) is never trained on and measures the result. Seeded; an interrupted
run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch
from qwen3 import Qwen3
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

TOKENIZER = Path(__file__).parents[1] / "embedded" / "duet-tiny-chat"

SLOTS = {
    "object": [("数据库", "database"), ("服务器", "server"), ("接口", "interface"), ("缓存", "cache"), ("日志", "log"),
               ("文档", "document"), ("预算", "budget"), ("网络", "network"), ("脚本", "script"), ("配置", "configuration"),
               ("模型", "model"), ("队列", "queue"), ("索引", "index"), ("内存", "memory"), ("证书", "certificate"),
               ("页面", "page"), ("报告", "report"), ("集群", "cluster"), ("镜像", "image"), ("密码", "password"),
               ("合同", "contract"), ("账单", "invoice"), ("打印机", "printer"), ("会议室", "meeting room")],
    "verb": [("部署", "deploy"), ("测试", "test"), ("检查", "check"), ("升级", "upgrade"), ("删除", "delete"), ("迁移", "migrate"),
             ("修复", "repair"), ("设计", "design"), ("优化", "optimise"), ("备份", "back up"), ("监控", "monitor"), ("发布", "release")],
    "who": [("前端团队", "the frontend team"), ("后端团队", "the backend team"), ("客户", "the customer"), ("经理", "the manager"),
            ("我们", "we"), ("测试团队", "the test team"), ("供应商", "the vendor"), ("老板", "the boss")],
    "when": [("今天", "today"), ("明天", "tomorrow"), ("下周", "next week"), ("周五", "on friday"), ("月底", "at the end of the month"),
             ("年底", "at the end of the year"), ("上午", "in the morning"), ("昨天晚上", "last night")],
    "number": [("两", "two"), ("三", "three"), ("五", "five"), ("十", "ten"), ("二十", "twenty")],
}  # fmt: skip
INTENTS = [
    (["{when}{who}要{verb}{object}。", "{who}{when}负责{verb}{object}。", "{verb}{object}的事{when}由{who}来做。", "请{who}{when}把{object}{verb}好。"],
     ["{who} will {verb} the {object} {when}.", "{when} {who} has to {verb} the {object}.", "it is up to {who} to {verb} the {object} {when}."]),
    (["{object}太慢了，需要{verb}。", "因为{object}很慢，所以要{verb}它。", "{object}的速度不行，得{verb}一下。"],
     ["the {object} is too slow, we must {verb} it.", "let us {verb} the slow {object}.", "because the {object} is slow it needs someone to {verb} it."]),
    (["谁来{verb}{object}？", "{verb}{object}由谁负责？", "{object}该找谁{verb}？"],
     ["who will {verb} the {object}?", "who is responsible to {verb} the {object}?", "whom do we ask to {verb} the {object}?"]),
    (["{object}坏了，{who}很着急。", "{who}说{object}出了问题。", "{object}不能用了，{who}在催。"],
     ["the {object} is broken and {who} is worried.", "{who} says there is a problem with the {object}.", "the {object} does not work, {who} complains."]),
    (["{verb}{object}还要{number}天。", "大概{number}天才能{verb}完{object}。", "{object}的{verb}需要{number}天时间。"],
     ["it takes {number} more days to {verb} the {object}.", "we need {number} days to {verb} the {object}.", "to {verb} the {object} will last {number} days."]),
    (["关于{object}的会议定在{when}。", "{when}开会讨论{object}。", "我们{when}再谈{object}。"],
     ["the meeting about the {object} is {when}.", "{when} we meet to discuss the {object}.", "let us talk about the {object} {when}."]),
    (["{who}不同意{verb}{object}。", "{who}反对{verb}{object}。"], ["{who} does not agree to {verb} the {object}.", "{who} is against the plan to {verb} the {object}."]),
    (["{who}同意{verb}{object}。", "{verb}{object}，{who}没有意见。"], ["{who} agrees to {verb} the {object}.", "{who} is fine with the plan to {verb} the {object}."]),
]  # fmt: skip


def filling(rng: random.Random, intent: int) -> dict[str, int]:
    text = INTENTS[intent][0][0]
    return {name: rng.randrange(len(words)) for name, words in SLOTS.items() if "{" + name + "}" in text}


def held_out(intent: int, chosen: dict[str, int]) -> bool:
    key = json.dumps([intent, chosen], sort_keys=True).encode()
    return hashlib.sha256(key).digest()[0] < 26


def render(rng: random.Random, intent: int, chosen: dict[str, int], language: int) -> str:
    template = rng.choice(INTENTS[intent][language])
    return template.format(**{name: SLOTS[name][i][language] for name, i in chosen.items()})


def pair(rng: random.Random, intent: int, chosen: dict[str, int]) -> tuple[str, str]:
    """Two wordings of one thing: same language or a translation, never the same sentence twice."""
    while True:
        first, second = (render(rng, intent, chosen, rng.randrange(2)) for _ in range(2))
        if first != second:
            return first, second


def batch(rng: random.Random, size: int, *, test: bool) -> list[tuple[str, str]]:
    """Half of a batch is of one intent: sentences that differ only in their fillings."""
    pairs, seen = [], set()
    common = rng.randrange(len(INTENTS))
    while len(pairs) < size:
        intent = common if rng.random() < 0.5 else rng.randrange(len(INTENTS))
        chosen = filling(rng, intent)
        key = json.dumps([intent, chosen], sort_keys=True)
        if key not in seen and held_out(intent, chosen) == test:
            seen.add(key)
            pairs.append(pair(rng, intent, chosen))
    return pairs


def embed(model: Qwen3, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Unit vectors [B, H]: the mean of the hidden states."""
    rows = [tokenizer.encode(text).ids for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in rows])
    pooled = (model(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return F.normalize(pooled, dim=-1)


def config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 160,
        "num_hidden_layers": 3, "intermediate_size": 384, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 32,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "hidden_act": "silu", "attention_bias": False,
    }  # fmt: skip


@torch.no_grad()
def evaluate(model: Qwen3, tokenizer: Tokenizer, rng: random.Random, rounds: int = 10, size: int = 100) -> float:
    """Share of held-out sentences whose other wording is the nearest of 100."""
    right = 0
    for _ in range(rounds):
        first, second = zip(*batch(rng, size, test=True), strict=True)
        nearest = (embed(model, tokenizer, list(first)) @ embed(model, tokenizer, list(second)).T).argmax(1)
        right += int((nearest == torch.arange(size)).sum())
    return right / (rounds * size)


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then a cosine."""
    return 1.5e-3 * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("embedding-training"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    settings = config(json.loads((TOKENIZER / "config.json").read_text())["vocab_size"])
    model = Qwen3(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    start, checkpoint = 0, arguments.work / "state.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    began = time.time()
    for step in range(start, arguments.steps):
        first, second = zip(*batch(random.Random(f"{arguments.seed}/{step}"), 64, test=False), strict=True)
        vectors = embed(model, tokenizer, [*first, *second])
        scores, labels = vectors[:64] @ vectors[64:].T / 0.05, torch.arange(64)
        loss = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 249:
            temporary = checkpoint.with_suffix(".tmp")
            torch.save({"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
            temporary.replace(checkpoint)
            top1 = evaluate(model, tokenizer, random.Random(1), rounds=2)
            print(f"step {step + 1} loss {loss.item():.3f} held-out top-1 {top1:.3f} {time.time() - began:.0f} s", flush=True)
    save(model, settings, arguments.out)
    print(f"held-out top-1 of 100: {evaluate(model, tokenizer, random.Random(2)):.3f}", flush=True)


def save(model: Qwen3, settings: dict[str, object], out: Path) -> None:
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, out / name)


if __name__ == "__main__":
    main()
