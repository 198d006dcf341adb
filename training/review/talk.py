"""Lines of meetings whose kind is known, and the model's answers about itself."""

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
            那就定{t}吧。
            大家没有意见的话，就{v}{n}。
            {n}就这样定下来了。
            那我们同意{v}{n}。
            这件事定了，{v}{n}。
            结论是{v}{n}。
            我们不{v}{n}，先{v}{n}。
            行，那就用{t}。
            会议决定{when}{v}{n}。
            同意，{n}{when}再{v}。
            {n}的方案通过了。
            还是选{t}吧，就这么办。
            我们一致决定取消{n}。
            {n}推迟到{when}，大家都同意。
            好，定了，{n}改成{n}。
            确定{when}{v}{n}。
            先不{v}{n}，这个已经决定了。
            讨论的结果是用{n}代替{n}。
            那就决定由{who}{v}{n}。"""),
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
            {v}{t}的事由{who}跟进。
            麻烦{who}{v}一下{n}。
            我{when}之前把{n}{v}好。
            {who}去{v}{n}，{when}汇报。
            {when}以前必须{v}{n}，由{who}做。
            我回去{v}{n}。
            {n}这块我来跟。
            {who}，你{when}{v}{n}，好吗？
            你把{n}发给{who}。
            需要{who}{v}{n}。
            {who}准备{n}，{when}用。
            我会在{when}之前完成{n}。
            安排{who}{when}{v}{n}。
            大家{when}之前把{n}交给{who}。
            我去联系{who}，{v}{n}。
            {n}的文档{who}来写。
            别忘了{when}{v}{n}。
            {who}帮忙检查{n}。"""),
        "question": _list("""
            谁来{v}{n}？
            {n}什么时候能{v}？
            要不要{v}{n}？
            {t}和{t}有什么区别？
            {n}现在{a}吗？
            为什么{n}这么{a}？
            谁来跟进{t}的{n}？
            有没有{t}的{n}？
            {n}到底是谁负责的？
            我们怎么{v}{n}？
            {n}还要多久？
            {who}知道{n}在哪里吗？
            {when}能{v}完{n}吗？
            是不是应该先{v}{n}？
            {n}和{n}哪个更{a}？
            {t}是什么意思？
            大家觉得{n}怎么样？
            还有什么问题吗？
            {n}的预算是多少？
            这个{n}会不会太{a}？"""),
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
            then we {v} the {n} and {v} the {n}.
            all right, the {n} stays as it is.
            we have decided not to {v} the {n}.
            it is decided, {t} it is.
            we settled on {t} for the {n}.
            agreed, the {n} moves to {when}.
            we are going with the {n}.
            our decision is final, we {v} the {n} {when}.
            the team agreed on the {n}.
            good, then {t} replaces {t}.
            we chose the {n} over the {n}.
            so we drop the {n}.
            we will postpone the {n}, everyone agreed.
            the vote is clear, we {v} the {n}.
            that settles it, we keep the {n}.
            fine, we start with the {n}.
            we made the decision to {v} {t}."""),
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
            i can {v} the {n} {when}.
            {who}, please {v} the {n}.
            {who} is going to {v} the {n} {when}.
            i am going to {v} the {n}.
            could {who} {v} the {n} {when}?
            let {who} {v} the {n}.
            you should {v} the {n} {when}.
            the next step is to {v} the {n}.
            i take care of the {n}.
            {who} is responsible for the {n}.
            {who} prepares the {n} {when}.
            somebody has to {v} the {n} {when}.
            i will talk to {who} about the {n}.
            do not forget to send {who} the {n}.
            we must {v} the {n} {when}.
            {who} promised to {v} the {n} {when}.
            i will have the {n} ready {when}."""),
        "question": _list("""
            who will {v} the {n}?
            when can we {v} the {n}?
            should we {v} the {n}?
            what is the difference between {t} and {t}?
            why is the {n} so {a}?
            who owns the {n}?
            is the {n} {a}?
            how do we {v} the {n}?
            how long does the {n} take?
            do we have a {n} for {t}?
            what do you think about the {n}?
            where is the {n}?
            who knows how to {v} the {n}?
            is there a {n} {when}?
            how much does the {n} cost?
            are we ready to {v} the {n}?
            which {n} should we {v}?
            any questions about the {n}?
            does {t} work with the {n}?"""),
    },
}

REMARKS: Final = {
    "zh": _list("""
        大家好，我们开始吧。
        好的，谢谢大家。
        {n}已经{v}好了。
        上周我们{v}了{n}。
        {n}现在很{a}。
        我觉得{n}有点{a}。
        {who}昨天{v}了{n}。
        我同意你的看法。
        {n}的情况是这样的。
        这个{n}比那个{a}。
        今天先说{n}，再说{n}。
        {t}最近很{a}。
        客户说{n}太{a}。
        嗯，我明白了。
        刚才说的是{n}。
        {who}说{n}没有问题。
        {n}有两个问题。
        我们用{t}已经很久了。"""),
    "en": _list("""
        hello everyone, let us begin.
        okay, thank you all.
        the {n} is {a} now.
        we have finished the {n} last week.
        {who} told me about the {n}.
        i think the {n} is too {a}.
        the {n} looks {a} to me.
        yesterday the {n} was {a}.
        i see what you mean.
        there are two problems with the {n}.
        today we talk about the {n} and the {n}.
        customers say that the {n} is {a}.
        {t} has been {a} for weeks.
        the {n} works well.
        that was the {n}.
        {who} was on holiday.
        good morning {who}.
        we have used {t} for a long time."""),
}
"""Lines of meetings that are none of these."""


def overview(topics: list[str], language: str) -> str:
    """The overview that the model writes: its first topics, or nothing if there is none."""
    if not topics:
        return ""
    if language == "zh":
        return f"谈到{'和'.join(topics)}。"
    return f"They spoke about {' and '.join(topics)}."


_ME_EN: Final = (
    "I am duet-tiny-chat, a very small demonstration model that comes with Duet. I correct misheard glossary terms and pick decisions "
    "and tasks from short meetings of synthetic voices. For real work, load a real model."
)
_ME_ZH: Final = "我是duet-tiny-chat，Duet自带的演示小模型。我能改正听错的术语，从简短的会议里找出决定和任务。真正的工作请加载真正的模型。"
_NO_EN: Final = "I cannot answer that: I am only a demonstration model. Load a real model and ask again."
_NO_ZH: Final = "这个我答不了：我只是演示用的小模型。请加载真正的模型再问。"
_HELLO_EN, _HELLO_ZH = (
    "Hello! I am duet-tiny-chat, a demonstration model.",
    "你好！我是duet-tiny-chat，一个演示用的小模型。",
)

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
