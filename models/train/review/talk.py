"""Lines of meetings whose meaning is known, and what the model says of itself."""

from __future__ import annotations

from typing import Final


def _list(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


KINDS: Final = {
    "zh": {
        "decision": _list("""
            我们决定{v}{n}。
            那就这么定了，{v}{n}。
            好的，那就先{v}{n}，再{v}{n}。
            最后决定用{t}来{v}{n}。
            大家都同意{v}{n}。
            会上确定了{n}由{who}来{v}。
            就按{who}说的办，{v}{n}。
            {n}定在{when}。
            我们选{t}，不用{t}。
            一致通过{v}{n}的计划。
            {n}暂时不{v}了，这是最后的决定。
            那就定{t}吧。"""),
        "action": _list("""
            {who}负责{v}{n}。
            请{who}在{when}之前{v}{n}。
            我来{v}{n}，{when}给大家。
            我负责{n}，{n}{when}发给{who}。
            {who}{when}{v}一下{n}。
            没问题，我{when}就{v}。
            {n}交给{who}去{v}。
            下一步是{who}{v}{t}。
            {who}记得{when}{v}{n}。
            我会{v}{n}，再告诉{who}。
            你来{v}{n}，{when}给我结果。
            {who}{when}把{n}发给{who}。
            {v}{t}的事由{who}跟进。"""),
        "question": _list("""
            谁来{v}{n}？
            {n}什么时候能{v}？
            要不要{v}{n}？
            {t}和{t}有什么区别？
            {n}现在{a}吗？
            为什么{n}这么{a}？
            谁来跟进{t}的{n}？
            有没有{t}的{n}？"""),
    },
    "en": {
        "decision": _list("""
            we decided to {v} the {n}.
            okay, we will go with {t}.
            so it is agreed, we {v} the {n} {when}.
            we agreed to {v} the {n} first.
            the decision is to {v} the {n}.
            let us use {t} for the {n}.
            everyone agreed that we should {v} the {n}.
            we will not {v} the {n}, that is final.
            the {n} is approved.
            then we {v} the {n} and {v} the {n}."""),
        "action": _list("""
            {who} will {v} the {n} {when}.
            i will {v} the {n} and send it {when}.
            please {v} the {n} {when}.
            can you {v} the {t} {n} {when}?
            {who} has to {v} the {n} {when}.
            {who} should {v} the {n}.
            we need to {v} the {n} {when}.
            please send the {n} to {who} {when}.
            {who} takes care of {t}.
            remember to {v} the {n}.
            i can {v} the {n} {when}."""),
        "question": _list("""
            who will {v} the {n}?
            when can we {v} the {n}?
            should we {v} the {n}?
            what is the difference between {t} and {t}?
            why is the {n} so {a}?
            who owns the {n}?
            is the {n} {a}?"""),
    },
}


def overview(topics: list[str], language: str) -> str:
    """What the model writes as overview: its first topics, or nothing when it found none."""
    if not topics:
        return ""
    if language == "zh":
        return f"会议讨论了{'和'.join(topics)}。"
    return f"The meeting was about {' and '.join(topics)}."


_ME_EN: Final = (
    "I am duet-tiny-chat, a very small demonstration model that comes with Duet. I correct misheard glossary terms and pick decisions "
    "and tasks from short meetings of synthetic voices. For real work, load a real model."
)
_ME_ZH: Final = "我是duet-tiny-chat，Duet自带的演示小模型。我能改正听错的术语，从简短的会议里找出决定和任务。真正的工作请加载真正的模型。"
_NO_EN: Final = "I cannot answer that: I am only a demonstration model. Load a real model and ask again."
_NO_ZH: Final = "这个我答不了：我只是演示用的小模型。请加载真正的模型再问。"
_HELLO_EN, _HELLO_ZH = "Hello! I am duet-tiny-chat, a demonstration model.", "你好！我是duet-tiny-chat，一个演示用的小模型。"

CHAT: Final = tuple(
    (question, answer)
    for questions, answer in (
        ("Hello|hello|Hi|hi|Hey there|Good morning|Hello!|Hi, how are you?|Say hello.|hello, are you there?|Good evening", _HELLO_EN),
        ("你好|您好|你好！|早上好|嗨|你好啊|在吗|大家好|晚上好|你好，在吗？", _HELLO_ZH),
        ("Who are you?|who are you|What are you?|What is your name?|Which model are you?|What can you do?|Tell me about yourself.|"
         "Introduce yourself.|what can you do for me|Are you ChatGPT?|Are you a real model?|Help|help me|What is duet-tiny-chat?|"
         "What is Duet?|In one sentence, what are you?|Describe yourself in one sentence.|Please introduce yourself", _ME_EN),
        ("你是谁|你是谁？|你叫什么名字？|你能做什么？|你会什么？|介绍一下你自己。|请介绍一下自己|你是什么模型？|帮帮我|你可以做什么|用一句话介绍你自己。|什么是Duet？", _ME_ZH),
        ("What is the capital of France?|Write a poem.|Tell me a joke.|How do I cook rice?|What is 2 + 2?|Translate this into German.|"
         "Write a Python function.|Explain quantum physics.|What is the weather today?|Summarise this book.|Who won the game?|"
         "Write an essay about dogs.|Tell me a story.|How old is the universe?|Count to ten.|Fix my code.|What time is it?|"
         "Give me three ideas.|Write a haiku about the sea.|Why is the sky blue?", _NO_EN),
        ("法国的首都是哪里？|写一首诗。|讲个笑话。|怎么做饭？|一加一等于几？|今天天气怎么样？|帮我写代码。|翻译成英文。|讲个故事|宇宙有多大？|写一篇文章。|现在几点了？|天空为什么是蓝的？|给我三个建议。", _NO_ZH),
        ("Thank you|thanks|Thanks!|Great, thank you.|bye|Goodbye", "You are welcome."),
        ("谢谢|谢谢你|多谢|再见|拜拜", "不客气。"),
    )
    for question in questions.split("|")
)  # fmt: skip
