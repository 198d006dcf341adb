"""Train `duet-tiny-embed`: a Qwen3-shaped text embedding for demonstration, on one CPU core in about ten minutes.

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
import random
import shutil
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_vlm.models.qwen3.config import ModelConfig
from mlx_vlm.models.qwen3_embedding import Model
from tokenizers import Tokenizer

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


def encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[mx.array, mx.array]:
    ids = [tokenizer.encode(text).ids for text in texts]
    length = max(map(len, ids))
    padded = np.array([row + [0] * (length - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return mx.array(padded), mx.array(mask)


def config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 160,
        "num_hidden_layers": 3, "intermediate_size": 384, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 32,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "hidden_act": "silu", "attention_bias": False,
    }  # fmt: skip


def evaluate(model: Model, tokenizer: Tokenizer, rng: random.Random, rounds: int = 10, size: int = 100) -> float:
    """Share of held-out sentences whose other wording is the nearest of 100."""
    right = 0
    for _ in range(rounds):
        first, second = zip(*batch(rng, size, test=True), strict=True)
        one = model(*encode(tokenizer, list(first))).text_embeds
        two = model(*encode(tokenizer, list(second))).text_embeds
        right += int(mx.sum(mx.argmax(one @ two.T, axis=1) == mx.arange(size)).item())
    return right / (rounds * size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("embedding-training"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    settings = config(json.loads((TOKENIZER / "config.json").read_text())["vocab_size"])
    mx.random.seed(arguments.seed)
    model = Model(ModelConfig.from_dict(settings))
    model.pooling_config = {"pooling_mode": "mean"}
    model.set_dtype(mx.float32)
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, 1.5e-3, 100), optim.cosine_decay(1.5e-3, arguments.steps - 100, 1e-5)], [100]
    )
    optimizer = optim.AdamW(learning_rate=schedule, weight_decay=0.01)
    optimizer.init(model.trainable_parameters())
    start = 0
    checkpoint = arguments.work / "state.npz"
    if checkpoint.exists():
        state = dict(mx.load(str(checkpoint)))
        start = int(state.pop("step").item())
        model.load_weights([(k[2:], v) for k, v in state.items() if k.startswith("m.")])
        optimizer.state = tree_unflatten([(k[2:], v) for k, v in state.items() if k.startswith("o.")])

    def loss_of(model: Model, ids: mx.array, mask: mx.array) -> mx.array:
        vectors = model(ids, mask).text_embeds
        one, two = vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :]
        scores, labels = one @ two.T / 0.05, mx.arange(len(one))
        return (nn.losses.cross_entropy(scores, labels).mean() + nn.losses.cross_entropy(scores.T, labels).mean()) / 2

    step_of = nn.value_and_grad(model, loss_of)
    began = time.time()
    for step in range(start, arguments.steps):
        first, second = zip(*batch(random.Random(f"{arguments.seed}/{step}"), 64, test=False), strict=True)
        loss, gradients = step_of(model, *encode(tokenizer, [*first, *second]))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if step % 100 == 99:
            mx.savez(str(checkpoint), step=mx.array(step + 1), **{"m." + k: v for k, v in tree_flatten(model.parameters())},
                     **{"o." + k: v for k, v in tree_flatten(optimizer.state)})  # fmt: skip
            top1 = evaluate(model, tokenizer, random.Random(1), rounds=2)
            print(f"step {step + 1} loss {loss.item():.3f} held-out top-1 {top1:.3f} {time.time() - began:.0f} s", flush=True)
    save(model, settings, arguments.out)
    print(f"held-out top-1 of 100: {evaluate(model, tokenizer, random.Random(2)):.3f}")
    sys.stdout.flush()


def save(model: Model, settings: dict[str, object], out: Path) -> None:
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    weights = {k.removeprefix("model."): v.astype(mx.float16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, out / name)


if __name__ == "__main__":
    main()
