"""Sentences of meetings with slots: {n} noun, {v} verb, {a} adjective, {t} term, {who}, {when}, {num}, {unit}.

They teach function words, questions and the patterns of spoken language. Words from whole dictionaries fill the slots.
"""

from __future__ import annotations

from typing import Final

CHINESE: Final = tuple(
    """
这个{n}我觉得还可以，不过{n}要再{v}一下。|{who}先把{n}{v}完，然后我们再看{n}。|你们有没有{v}过{n}？|那个{n}是谁{v}的？|{when}之前必须{v}好{n}。|我不太明白为什么要{v}{n}。
{n}的{n}比{n}更{a}。|他们已经{v}了{num}{unit}，还是没有{v}{n}。|如果{n}太{a}，就不要{v}了。|对，我也是这么想的，{n}确实很{a}。|能不能把{n}改成{n}？|关于{n}，{who}有什么意见？
{who}昨天跟{who}说{n}有点{a}。|没关系，{when}再{v}也来得及。|其实{n}跟{n}没有什么关系。|这件事情让{who}来{v}吧。|她说她的{n}还在{v}。|它的{n}只有{num}{unit}。|一共需要{num}{unit}，现在还差{num}{unit}。
我刚才看了{n}，里面的{n}不对。|只要{v}了{n}，问题就解决了。|虽然{n}很{a}，但是{n}不行。|除了{n}以外，还要考虑{n}。|从{when}开始，{n}由{who}负责。|请大家{when}之前把{n}发给我。|嗯，那{n}呢？
先不说{n}，{n}到底要不要{v}？|我建议把{n}和{n}分开{v}。|{n}上{when}就应该{v}了。|还有一个问题，{n}的{n}怎么{v}？|好，那就这样，{who}{v}{n}，{who}{v}{n}。|我们不能再{v}{n}了，太{a}了。|可不可以先{v}一部分{n}？
这样做的话，{n}会{v}得更快。|{who}的意思是{n}没有必要{v}。|听起来{n}挺{a}的。|要是没有{n}，我们就没办法{v}。|{num}个人里面有{num}个{v}了{n}。|{when}{num}点我们再{v}一次{n}。|你说得对，{n}是最{a}的。
{t}怎么{v}？|我们打算用{t}来{v}{n}。|{t}的{n}太{a}了。|{who}正在{v}{t}。|有人用过{t}吗？|{t}和{t}选哪一个？|把{t}换成{t}，{n}就不会{v}了。|听说{t}最近{v}了。|{t}这边还差{num}{unit}。|{when}{t}又{v}了一次。
最后再确认一下{n}。|大家都{v}完了吗？|我会{v}{n}，再告诉{who}。|这次的{n}是{who}做的，做得很{a}。|现在{v}的是第{num}个{n}。|还是按照原来的{n}来{v}。|他把{n}给{v}了，所以{n}不见了。|我已经{v}过三遍了，还是不{a}。
今天主要说{num}件事。|{n}什么时候能{v}？|谁知道{n}在哪里？|我来{v}，你们{v}{n}。|别忘了{v}{n}。|先这样吧，下次再{v}。|{who}不在，{n}先放一放。|结果跟{when}差不多。|我同意，不过要注意{n}。|{n}可能要花{num}{unit}。
现在{num}点了，我们抓紧时间。|这个数字应该是{num}，不是{num}。|增加了百分之{num}。|大约{num}{unit}左右。|{who}们都很{a}。|怎么又是{n}？|是不是{n}出了什么事？|到时候{who}会通知你们的。|不要紧，慢慢{v}。|说实话，我没{v}过{n}。
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
CHINESE_WHO: Final = (
    "我 你 他 她 我们 你们 他们 她们 大家 老师 经理 同事 客户 老板 医生 学生 专家 朋友 对方 别人 小王 老李 小张 领导 秘书 财务 销售 市场部 研发部 人事部 技术部 用户 "
    "工程师 设计师 所有人 每个人"
).split()
CHINESE_WHEN: Final = (
    "今天 明天 昨天 后天 前天 上周 下周 这周 本周 周一 周二 周三 周四 周五 周六 周日 星期一 星期三 星期五 上个月 下个月 月初 月底 年初 年底 去年 今年 明年 上午 下午 晚上 早上 "
    "中午 刚才 现在 以后 之前 一月 三月 五月 六月 八月 九月 十月 十二月 第一季度 第二季度 上半年 下半年"
).split()
CHINESE_UNIT: Final = (
    "个 天 周 年 次 台 人 分钟 小时 秒 个月 块钱 万元 公里 米 遍 条 张 件 份 家 位 层 倍 页 行 种 套 元 毫秒 兆".split()
)

ENGLISH: Final = tuple(
    """
i think the {n} is too {a} for us.|we have to {v} the {n} before {when}.|did anyone {v} the {n}?|{who} said that the {n} was {a}.|let me {v} the {n} and get back to you.|it would be better to {v} the {n} first.|why do we need a {a} {n}?
the {n} and the {n} are not the same.|they want us to {v} their {n} {when}.|there are {num} {n} left.|i have already {v} it, but it is still {a}.|could you please {v} your {n}?|that is a {a} question.|what happens if the {n} is {a}?
so far we have {num} {unit} of {n}.|he was {a} when he saw the {n}.|she will {v} it {when}.|you can {v} the {n} with a {n}.|none of us could {v} the {n}.|it took {num} {unit} to {v} a {n}.|no, we did not {v} it.|yes, {who} should {v} that.
the {a} {n} is in the {n}.|i do not know how to {v} this.|whose {n} is it?|our {n} is more {a} than theirs.|would you like to {v} something?|after the {n} we can {v} again.|until {when} nothing will {v}.|{who} does not have any {n}.|where can i find the {n}?
which of these is {a}?|if you {v} it now, it will be {a} {when}.|because of the {n} we could not {v}.|there is no {n} without a {n}.|most of the {n} were {a}.|it is hard to say whether the {n} will {v}.|thank you, that was very {a}.|okay, who is next?|sorry, i was on mute.
{t} is {a} and {who} likes it.|we switched from {t} to {t}.|the {t} {n} needs a new {n}.|has {who} tried {t}?|{t} costs {num} {unit} a month.|do not {v} {t} on {when}.|our {n} runs on {t}.|who knows {t} here?|with {t} the {n} is {a}.|i would rather {v} {t} than {t}.|please {v} the {t} {n}.
the number went from {num} to {num}.|about {num} percent of the {n} failed.|we met {num} times {when}.|that was {num} {unit} ago.|let us move on to the next {n}.|i agree with {who}.|can we talk about the {n} {when}?|somebody must have {v} it.|everything was {a} again.|what did you do with the {n}?
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ENGLISH_WHO: Final = (
    "we|they|you|i|he|she|everyone|nobody|somebody|the manager|the customer|my boss|our team|the doctor|the students|the engineers|peter|mary|anna|david|the designer|the other team|"
    "the lawyer|the company|people|most users"
).split("|")
ENGLISH_WHEN: Final = (
    "today|tomorrow|yesterday|tonight|monday|tuesday|wednesday|thursday|sunday|next week|last year|this month|last summer|in the morning|in january|in march|in june|in october|next spring|"
    "at noon|right now|later|soon|at five"
).split("|")
ENGLISH_UNIT: Final = "days|weeks|hours|minutes|years|people|dollars|times|pages|miles|items|euros|points|files|steps|seconds|meters".split(
    "|"
)

WORK_CHINESE_NOUNS: Final = """
    接口 数据库 缓存 模型 服务器 网关 前端 后端 架构 文档 代码 需求 计划 版本 分支 日志 配置 集群 容器 队列 索引 线程 内存 磁盘 网络 带宽 延迟 权限 证书 脚本 镜像 流量 报告
    页面 账号 密钥 性能 成本 预算 风险 漏洞 指标 微服务 知识图谱 负载均衡 消息队列 单元测试 语音识别 大模型 机器学习 深度学习 人工智能 云计算 区块链 搜索引擎 推荐系统 数据仓库
    灰度发布 压力测试 持续集成 线程池 连接池 防火墙 加密算法 状态机 中间件 虚拟机
""".split()
WORK_CHINESE_VERBS: Final = """
    讨论 检查 修改 优化 测试 部署 发布 重构 升级 回滚 监控 评估 确认 合并 删除 迁移 设计 实现 解决 跟进 整理 准备 调试 验证 更新
""".split()
WORK_CHINESE_ADJECTIVES: Final = """
    稳定 复杂 简单 紧急 重要 清楚 完整 安全 慢 快 高 低 正常 合理 困难
""".split()
WORK_CHINESE_OTHER: Final = """
    项目 相关 简单 减少 政府 整流 真实 流程 留下 章节 伟大 为什么 里面 景色 精神 经过 容量 榕树 段落 断开 现在 显示 限制 留言 召开 招聘 绿色 率先 生活 声音 圣诞 文件 问题
    特别 正在 工程 公司 功成 梯子 体会 密集 度过 等待 灯光 多少 组织 祖国 户外 沙发 箱子 香港 江山 将来 讲解 级别 集合 买卖 卖出 点名 店铺 托管 民主 敏感 规定 归还 当然
    挡住 边缘 编写 排队 拍照 连接 调查 条件 冒险 毛病 研究 眼前 春天 存储 村庄 发现 法律 反馈 方案 放心 非常 分析 风格 服务 负责 改变 感谢 钢铁 告诉 歌曲 根据 更多 功能
    构成 股份 关键 光线 广告 国家 过程 还是 海外 汉语 好处 合作 黑色 很多 后来 忽然 花园 坏处 欢迎 环境 黄色 回答 会议 活动 机会 基础 技术 继续 价格 坚持 建议 江水 交流
    教育 接受 结果 今年 进行 经验 究竟 就是 举办 具体 决定 军队 开始 看见 考虑 科学 可能 空间 控制 口头 快乐 宽度 困境 扩大 来源 浪费 老师 类型 冷静 离开 力量 两边 了解
    领导 另外 流行 龙头 楼上 路线 旅行 轮到 落后 马上 满意 忙碌 每天 门口 梦想 秘密 面前 明白 目标 哪里 男生 难度 内容 能力 你好 年轻 农业 努力 女生 欧洲 旁边 跑步 培训
    朋友 批准 偏差 漂亮 品牌 平台 破坏 普通 七月 其他 企业 前进 强度 桥梁 亲自 清单 情况 球队 区域 取消 全部 确实 群众 然后 热情 人员 认为 任务 日期 如果 软件 若干 三月
    扫描 色彩 森林 商业 上线 少数 设备 深入 什么 升高 失败 时候 使用 世界 收入 手机 树木 双方 睡觉 说明 思考 四月 送到 速度 虽然 随时 损失 所有 态度 谈话 逃跑 提高 天气
    停止 通过 同意 头部 突然 图片 推动 退出 外部 完成 晚会 网站 危险 维护 位置 温度 污染 无法 五月 物品 希望 系统 下载 先进 香味 想法 消息 小心 效果 新闻 心情 星期 行动
    兄弟 修复 需要 许多 选择 学习 寻找 训练 压缩 严格 演示 样本 要求 也许 夜里 一定 因为 引入 应该 影响 用户 优势 有效 预测 原因 远程 愿意 约定 月份 云端 允许 运行 杂志
    再次 早上 怎么 增加 战略 掌握 照片 这里 真正 整个 证明 支持 直接 质量 中国 终于 种类 周期 主要 注意 抓紧 专家 转换 装置 追踪 准确 资源 自动 总结 走向 足够 最后 尊重
    昨晚 作用 做事
""".split()
WORK_ENGLISH_NOUNS: Final = """
    database server cache interface model release branch pipeline document report budget schedule
    cluster container queue index network memory gateway dashboard script password account certificate
    request response feature bug ticket plan contract prototype service version test config log page
    thread backup
""".split()
WORK_ENGLISH_VERBS: Final = """
    deploy review test update release merge check fix migrate monitor refactor discuss document design
    measure upgrade restart debug remove approve finish improve
""".split()
WORK_ENGLISH_ADJECTIVES: Final = """
    slow fast stable broken ready late simple complex expensive important urgent safe clear empty full
    good bad
""".split()
WORK_ENGLISH_TERMS: Final = """
    redis docker python linux github jenkins mysql kafka nginx react swift java token api prompt agent
    embedding transformer whisper spark hadoop android windows chrome excel json http cpu gpu cloud
    email bug demo
""".split()
WORK_ENGLISH_OTHER: Final = """
    about above accept access across action active actually add after again agree alert allow almost
    already also always analysis another answer any approach area around ask available away back balance
    basic because become before begin behind believe below best better between big block board both
    bring build business busy button buy call can care case cause center certain change channel choice
    choose class clean click client close cloud code collect color come common company compare compile
    complete compute connect consider contain content control copy correct cost could count country
    course cover create current cut daily data day decide deep default define delay delete delivery
    depend detail develop device different direct disk does done double down draft draw drive drop due
    each early easy edit effect effort either else end engine enough error even event ever every example
    except exist expect explain export extra face fail fall family far field file fill final find first
    five focus follow force form found four free friend from front function future general get give
    global go goal great group grow growth guess half hand handle happen hard have head hear heavy help
    here high hold home hope hot house how idea if image import include increase input inside install
    instead issue item job join jump just keep key kind know lab language large last late latency launch
    law layer lead learn least leave left less level library life light like limit line link list little
    live load local lock long look loop lose low machine main make many map mark market master match
    matter maybe mean meet member message method middle might mind minute miss mode money month more
    morning most move much name native near never new night node none note nothing notice number object
    offer office often old only open option order other out output over own pack part pass past patch
    path pay people perfect phone piece place point policy port power present press price private
    problem process product project public pull push put quality query question quick quite raise range
    rate reach read real reason record reduce region remote repeat reply research reset result return
    rich right risk role room root rule run safety sales same save say scale school screen search second
    section see seem select sell send sense set seven share she shell short show side sign simply since
    single site size small smart social solve some sound source space speak speed split stage start
    state step still stop store story strong study style success such support sure switch system table
    take talk target task team tell term text than thank that their them then theory there these thing
    think this those thread three through time title together tool top total touch track train tree true
    trust try turn two type under unit until usage use user usually value very video view visit voice
    wait walk want watch water way week well what where which while white whole why wide will window
    with without word work world worry would write wrong year yellow yes yet zero zone
""".split()
