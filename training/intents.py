"""Sentences of meetings and messages in both languages. All wordings in one line have the same meaning.

The slots are {n} and {m} for things, {v} for an action, {who} and {whom}, {when} and {num}. A line is Chinese |
English.
"""

from __future__ import annotations

from typing import Final

from training.sentences import Language

Wordings = dict[Language, tuple[str, ...]]

_LINES: Final = """
{who}{when}负责{v}{n} / {v}{n}的事{when}交给{who} / {when}由{who}来{v}{n} | {who} will {v} the {n} {when} / {when} it is up to {who} to {v} the {n} / {who} takes care to {v} the {n} {when}
{n}太慢了，得赶快{v} / 因为{n}速度太慢，所以要{v} / {n}不够快，需要{v}一下 | the {n} is too slow and we must {v} it / let us {v} the slow {n} / the {n} is not fast enough, {v} it
谁来{v}{n} / {v}{n}找谁 / 哪一位可以{v}{n} | who is going to {v} the {n} / whom do i ask to {v} the {n} / who can {v} the {n}
{n}坏了，{who}很着急 / {n}不能用，{who}在催 / {n}出了故障，{who}非常担心 | the {n} is broken and {who} is worried / {who} is upset because the {n} does not work / the {n} failed, {who} is nervous
{v}{n}还要{num}天 / 再过{num}天才能{v}完{n} | it takes {num} more days to {v} the {n} / we need another {num} days to {v} the {n}
{when}开会讨论{n} / 关于{n}的会定在{when} / 我们{when}再谈{n} | the meeting about the {n} is {when} / {when} we meet to discuss the {n} / let us talk about the {n} {when}
{who}不同意{v}{n} / {who}反对{v}{n} / {who}不赞成{v}{n} | {who} does not agree to {v} the {n} / {who} is against the plan to {v} the {n} / {who} opposes that we {v} the {n}
{who}同意{v}{n} / {who}赞成{v}{n} / {v}{n}，{who}没有意见 | {who} agrees to {v} the {n} / {who} is fine with the plan to {v} the {n} / {who} supports that we {v} the {n}
{n}比{m}便宜 / 跟{m}相比，{n}价格更低 / {m}比{n}贵 | the {n} is cheaper than the {m} / compared with the {m} the {n} costs less / the {m} is more expensive than the {n}
{n}和{m}不是一回事 / {n}跟{m}不一样 | the {n} and the {m} are not the same / the {n} is different from the {m}
请把{n}发给{who} / 麻烦你把{n}传给{who} | please send the {n} to {who} / could you give {who} the {n}
{who}忘了{v}{n} / {who}没有记得{v}{n} | {who} forgot to {v} the {n} / {who} did not remember to {v} the {n}
{n}在哪里 / 哪儿能找到{n} / 我找不到{n} | where is the {n} / where can i find the {n} / i cannot find the {n}
{n}要多少钱 / {n}的价格是多少 / {n}怎么卖 | how much is the {n} / what does the {n} cost / what is the price of the {n}
怎么{v}{n} / 如何{v}{n} / {v}{n}的方法是什么 | how do i {v} the {n} / how to {v} the {n} / what is the way to {v} the {n}
为什么要{v}{n} / {v}{n}的原因是什么 | why should we {v} the {n} / what is the reason to {v} the {n}
什么时候{v}{n} / 几时能{v}{n} | when do we {v} the {n} / at what time will you {v} the {n}
不要{v}{n} / 别{v}{n} / 禁止{v}{n} | do not {v} the {n} / never {v} the {n} / it is forbidden to {v} the {n}
{who}已经{v}了{n} / {n}{who}{v}好了 | {who} has already {v}ed the {n} / the {n} was {v}ed by {who}
{who}还没{v}{n} / {n}{who}还没有{v} | {who} has not {v}ed the {n} yet / the {n} is still not {v}ed by {who}
我很喜欢{n} / {n}让我很满意 / {n}真不错 | i like the {n} very much / i am happy with the {n} / the {n} is really good
{n}让人失望 / {n}很差 / 我对{n}不满意 | the {n} is disappointing / the {n} is bad / i am not happy with the {n}
买了{num}个{n} / 一共购买了{num}个{n} | bought {num} {n}s / {num} {n}s were purchased in total
{n}里有{m} / {m}在{n}里面 | there is a {m} in the {n} / the {m} is inside the {n}
{n}需要{m} / 没有{m}就没有{n} | the {n} needs the {m} / without the {m} there is no {n}
{n}取消了，改到{when} / {n}推迟到{when} | the {n} was moved to {when} / the {n} is postponed until {when}
{who}想学习{n} / {who}对{n}感兴趣 | {who} wants to learn about the {n} / {who} is interested in the {n}
{who}请了{num}天假 / {who}休息{num}天 | {who} is on leave for {num} days / {who} takes {num} days off
{n}丢了 / {n}不见了 / 有人弄丢了{n} | the {n} is lost / the {n} has disappeared / somebody lost the {n}
{n}增加了百分之{num} / {n}上涨{num}个百分点 | the {n} rose by {num} percent / the {n} increased {num} percent
{n}减少了一半 / {n}下降了百分之五十 | the {n} was cut in half / the {n} fell by fifty percent
{who}在{n}等{whom} / {whom}让{who}在{n}等着 | {who} is waiting for {whom} at the {n} / {who} waits at the {n} until {whom} comes
{who}邀请{whom}参加{n} / {whom}收到了{who}的{n}邀请 | {who} invited {whom} to the {n} / {whom} got an invitation to the {n} from {who}
{who}批评了{n} / {who}觉得{n}有问题 | {who} criticised the {n} / {who} thinks something is wrong with the {n}
"""
INTENTS: Final[tuple[Wordings, ...]] = tuple(
    {"zh": tuple(chinese.strip().split(" / ")), "en": tuple(english.strip().split(" / "))}
    for chinese, _, english in (line.partition("|") for line in _LINES.strip().splitlines())
)

WHO: Final = tuple(
    tuple(pair.split("="))
    for pair in [
        "我=i",
        "你=you",
        "他=he",
        "她=she",
        "我们=we",
        "他们=they",
        "客户=the customer",
        "经理=the manager",
        "老板=the boss",
        "老师=the teacher",
        "同事=my colleague",
        "学生=the student",
        "工程师=the engineer",
        "设计师=the designer",
        "财务=the accountant",
        "医生=the doctor",
        "邻居=the neighbour",
        "供应商=the supplier",
        "秘书=the secretary",
        "朋友=my friend",
        "司机=the driver",
        "律师=the lawyer",
        "父母=the parents",
        "孩子=the child",
    ]
)
WHEN: Final = tuple(
    tuple(pair.split("="))
    for pair in [
        "今天=today",
        "明天=tomorrow",
        "后天=the day after tomorrow",
        "下周=next week",
        "周一=on monday",
        "周二=on tuesday",
        "周三=on wednesday",
        "周四=on thursday",
        "周五=on friday",
        "周末=at the weekend",
        "月底=at the end of the month",
        "年底=at the end of the year",
        "上午=in the morning",
        "下午=in the afternoon",
        "晚上=in the evening",
        "今晚=tonight",
        "明年=next year",
        "下个月=next month",
        "春天=in spring",
        "夏天=in summer",
        "秋天=in autumn",
        "冬天=in winter",
        "中午=at noon",
        "午饭后=after lunch",
    ]
)
NUMBERS: Final = tuple(
    tuple(pair.split("="))
    for pair in [
        "两=two=2",
        "三=three=3",
        "四=four=4",
        "五=five=5",
        "六=six=6",
        "七=seven=7",
        "八=eight=8",
        "九=nine=9",
        "十=ten=10",
        "二十=twenty=20",
    ]
)
