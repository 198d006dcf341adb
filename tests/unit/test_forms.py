"""Forms with uploads: what arrives, where it lies, and what is said of a form that is wrong."""

from __future__ import annotations

import resource
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, File, Form, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.http.edge import install_edge
from duet.http.forms import FormRoute
from duet.http.parts import MAX_PARTS, MAX_TEXT_BYTES, Upload
from duet.http.spool import Spool

KEY = "duet-test"
LIMIT = 3 << 20
MULTIPART = "multipart/form-data; boundary=mark"


def make_app(folder: Path) -> FastAPI:
    app, router = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), APIRouter(route_class=FormRoute)
    install_edge(app, key=KEY, allowed_hosts=(), max_body_bytes=LIMIT + (8 << 20))
    app.state.spool = Spool(folder, max_bytes=LIMIT)

    @router.post("/send")
    async def send(
        request: Request,
        file: Annotated[Upload, File()],
        model: Annotated[str, Form(max_length=20)] = "auto",
        words: Annotated[list[str] | None, Form()] = None,
        number: Annotated[int, Form(ge=0)] = 0,
    ) -> dict[str, Any]:
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (file.path, file.path.parent, folder)]
        file.path.with_name("decoded.pcm").write_bytes(b"beside it")
        data = file.path.read_bytes()
        if data == b"fail":
            raise ZeroDivisionError
        form = {name: value for name, value in (await request.form()).multi_items() if isinstance(value, str)}
        return {
            "size": len(data), "sum": sum(data), "name": file.filename, "modes": modes, "form": form, "words": words,
            "alone": sorted(path.name for path in file.path.parent.iterdir()), "number": number,
        }  # fmt: skip

    app.include_router(router)
    return app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "tmp" / "router"


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    folder.parent.parent.mkdir()
    transport = httpx.ASGITransport(make_app(folder))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as found:
        yield found
    assert list(folder.glob("*")) == []


def part(disposition: str, data: bytes, *more: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *more])
    return b"--mark\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


FILE = part('name="file"; filename="a.wav"', b"RIFF", "Content-Type: audio/wav")
MODEL = part('name="model"', b"auto")
END = b"--mark--\r\n"


async def post(
    client: httpx.AsyncClient, body: bytes | AsyncIterator[bytes], kind: str | None = MULTIPART
) -> httpx.Response:
    return await client.post("/send", content=body, headers={} if kind is None else {"Content-Type": kind})


async def test_an_upload_is_a_private_file_alone_in_its_folder(client: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 8192
    answer = await client.post(
        "/send", files={"file": ("会议.wav", data)}, data={"model": "auto", "words": ["a", "b"], "x": "1"}
    )
    assert answer.json() == {
        "size": len(data), "sum": sum(data), "name": "会议.wav", "modes": [0o600, 0o700, 0o700], "number": 0,
        "form": {"model": "auto", "words": "b", "x": "1"}, "words": ["a", "b"], "alone": ["decoded.pcm", "file"],
    }  # fmt: skip


async def test_an_upload_goes_when_its_route_fails(client: httpx.AsyncClient, folder: Path) -> None:
    assert (await client.post("/send", files={"file": ("a", b"fail")})).status_code == 500
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("bytes_more", "status"), [(0, 200), (1, 413)])
async def test_the_bound_of_a_file_is_exact(client: httpx.AsyncClient, bytes_more: int, status: int) -> None:
    answer = await client.post("/send", files={"file": ("a", b"x" * (LIMIT + bytes_more))})
    assert answer.status_code == status
    if status == 413:
        assert answer.json()["error"]["param"] == "file"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('name="file"; filename="a b.wav"', "a b.wav"), ("name=file; filename=a.wav", "a.wav"), ('name="file"; filename=""', ""),
        ("name=\"file\"; filename*=utf-8''%E4%BC%9A.wav", "会.wav"), ("filename*=UTF-8''x; name=\"file\"", "x"),
        ('name="file"; filename="../../etc/passwd"', "../../etc/passwd"), ('filename="a.wav"; name="file"', "a.wav"),
        ('name="file"; filename="a\\"b"', 'a"b'), ('name="file"; filename="会议.wav"', "会议.wav"),
    ],
)  # fmt: skip
async def test_a_part_with_any_form_of_file_name_is_an_upload(
    client: httpx.AsyncClient, disposition: str, name: str
) -> None:
    answer = await post(client, part(disposition, b"data") + END)
    assert (answer.status_code, answer.json()["name"], answer.json()["size"]) == (200, name, 4)


WRONG: list[tuple[str, bytes, str | None, str | None, str]] = [
    ("no content type", FILE + END, None, "file", "no Content-Type"),
    ("json", b"{}", "application/json", "file", "multipart/form-data"),
    ("a form without uploads", b"file=x&model=auto", "application/x-www-form-urlencoded", "file", "multipart/form-data"),
    ("audio itself", b"RIFF", "audio/wav", "file", "audio/wav"),
    ("multipart of another kind", FILE + END, "multipart/mixed; boundary=mark", "file", "multipart/form-data"),
    ("no boundary", FILE + END, "multipart/form-data", "Content-Type", "no boundary"),
    ("empty boundary", FILE + END, "multipart/form-data; boundary=", "Content-Type", "no boundary"),
    ("long boundary", FILE + END, "multipart/form-data; boundary=" + "b" * 5000, "Content-Type", "5000 bytes"),
    ("another boundary", FILE + END, "multipart/form-data; boundary=other", "Content-Type", "boundary"),
    ("nothing", b"", MULTIPART, "Content-Type", "boundary"),
    ("no part", END, MULTIPART, "file", "missing"),
    ("no file", MODEL + END, MULTIPART, "file", "missing"),
    ("file under another name", part('name="audio"; filename="a"', b"x") + END, MULTIPART, "file", "missing"),
    ("file as text", part('name="file"', b"RIFF") + END, MULTIPART, "file", "file name"),
    ("file as typed text", part('name="file"', b"RIFF", "Content-Type: audio/wav") + END, MULTIPART, "file", "file name"),
    ("two files", FILE + FILE + END, MULTIPART, "file", "twice"),
    ("text as file", FILE + part('name="model"; filename="m"', b"auto") + END, MULTIPART, "model", "text"),
    ("list as file", FILE + part('name="words"; filename="m"', b"a") + END, MULTIPART, "words", "text"),
    ("two values", MODEL + part('name="model"', b"other") + FILE + END, MULTIPART, "model", "twice"),
    ("no name", part('filename="a"', b"x") + FILE + END, MULTIPART, None, "part 1 of the form has no name"),
    ("no disposition", FILE + b"--mark\r\nContent-Type: a/b\r\n\r\nx\r\n" + END, MULTIPART, None, "part 2"),
    ("no headers", b"--mark\r\n\r\nx\r\n" + FILE + END, MULTIPART, None, "part 1"),
    ("cut in the file", FILE[:-4], MULTIPART, "file", "cut off"),
    ("cut after the file", FILE, MULTIPART, "file", "cut off"),
    ("cut in the last boundary", FILE + END[:-4], MULTIPART, "file", "cut off"),
    ("cut in a header", FILE + b"--mark\r\nContent-Disp", MULTIPART, None, "headers of part 2"),
    ("cut in the first boundary", b"--ma", MULTIPART, "Content-Type", "boundary"),
    ("bad header", b"--mark\r\nContent Disposition: x\r\n\r\n", MULTIPART, None, "headers of part 1"),
    ("long header", part('name="model"', b"x", "X: " + "a" * 100_000) + END, MULTIPART, None, "4096 bytes"),
    ("many headers", part('name="model"', b"x", *[f"X{i}: a" for i in range(100)]) + END, MULTIPART, None, "at most 16"),
    ("many parts", part('name="x"', b"x") * (MAX_PARTS + 1) + END, MULTIPART, None, str(MAX_PARTS)),
    ("not UTF-8", part('name="model"', b"\xff") + FILE + END, MULTIPART, "model", "not UTF-8"),
    ("a name that is not", part('name="model"', b"x").replace(b"model", b"\xff") + END, MULTIPART, "the name of part 1", "UTF-8"),
    ("another charset", part('name="model"', b"\xe9", "Content-Type: text/plain; charset=latin-1") + FILE + END, MULTIPART,
     "model", "latin-1"),
    ("base64", part('name="file"; filename="a"', b"UklGRg==", "Content-Transfer-Encoding: base64") + END, MULTIPART, "file",
     "base64"),
    ("no number", part('name="number"', b"x") + FILE + END, MULTIPART, "number", "number"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "param", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
async def test_a_wrong_form_is_refused_by_name(
    client: httpx.AsyncClient, folder: Path, body: bytes, kind: str | None, param: str | None, said: str
) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for i in range(0, len(body), 7 if len(body) < 1000 else 4000):
            yield body[i : i + (7 if len(body) < 1000 else 4000)]

    for content in (body, slowly()):
        answer = await post(client, content, kind)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), answer.text
        assert said in error["message"]
        assert "parsing the body" not in error["message"]
        assert list(folder.glob("*")) == []


async def test_texts_are_bounded_one_by_one_and_together(client: httpx.AsyncClient) -> None:
    one = await post(client, part('name="x"', b"x" * (MAX_TEXT_BYTES + 1)) + FILE + END)
    all_of_them = await post(client, part('name="x"', b"x" * MAX_TEXT_BYTES) * 5 + FILE + END)
    assert (one.status_code, one.json()["error"]["param"]) == (413, "x")
    assert (all_of_them.status_code, all_of_them.json()["error"]["code"]) == (413, "payload_too_large")


async def test_a_text_that_windows_saved_is_read(client: httpx.AsyncClient) -> None:
    body = b'--mark\r\nContent-Disposition: form-data; name="words"\r\n\r\n' + "词 a".encode("utf-16")
    body += b'\r\n--mark\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--mark--\r\n'
    answer = await client.post("/send", content=body, headers={"Content-Type": MULTIPART})
    assert answer.json()["words"] == ["词 a"]


async def test_uploads_that_nobody_asked_for_leave_nothing(client: httpx.AsyncClient) -> None:
    answer = await post(client, part('name="other"; filename="o"', b"x" * (2 << 20)) + FILE + END)
    assert (answer.status_code, answer.json()["alone"]) == (200, ["decoded.pcm", "file"])


async def test_a_text_may_come_twice_if_it_says_the_same(client: httpx.AsyncClient) -> None:
    assert (await post(client, MODEL + FILE + MODEL + END)).status_code == 200


@given(st.data())
@settings(max_examples=40)
async def test_where_the_pieces_of_a_form_are_cut_makes_no_difference(data: st.DataObject) -> None:
    import tempfile

    sent = data.draw(st.binary(max_size=300)).replace(b"--mark", b"") + data.draw(
        st.sampled_from([b"", b"\r", b"\r\n--mar", b"\r\n--"])
    )
    body = MODEL + part('name="file"; filename="a"', sent) + END
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            yield body[start:end]

    with tempfile.TemporaryDirectory() as home:
        transport = httpx.ASGITransport(make_app(Path(home) / "tmp" / "router"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            client.headers["Authorization"] = f"Bearer {KEY}"
            answer = (await post(client, pieces())).json()
    assert (answer["size"], answer["sum"], answer["form"]) == (len(sent), sum(sent), {"model": "auto"})


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 1 MiB, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
async def test_a_disk_that_takes_no_more_is_said_and_nothing_is_left(client: httpx.AsyncClient, folder: Path) -> None:
    answer = await client.post("/send", files={"file": ("a", b"x" * (2 << 20))})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (507, "disk_full", "file")
    assert "free space on that disk" in error["message"]
    assert list(folder.iterdir()) == []
    assert (await client.post("/send", files={"file": ("a", b"x")})).status_code == 200


async def test_a_home_where_no_folder_can_be_made_is_said_too(client: httpx.AsyncClient, folder: Path) -> None:
    folder.parent.parent.rmdir()
    folder.parent.parent.write_text("a file in the way")
    answer = await client.post("/send", files={"file": ("a", b"x")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    folder.parent.parent.unlink()
    folder.parent.parent.mkdir()


async def test_a_client_that_leaves_leaves_nothing(folder: Path) -> None:
    """Its connection closes in the middle of the upload."""
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": FILE[:-3], "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    folder.parent.mkdir(parents=True)
    headers = {"host": "localhost", "authorization": f"Bearer {KEY}", "content-type": MULTIPART}
    scope = {
        "type": "http", "method": "POST", "path": "/send", "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "server": ("localhost", 80),
        "client": ("127.0.0.1", 1), "http_version": "1.1",
    }  # fmt: skip
    await make_app(folder)(scope, receive, send)
    assert sent[0]["status"] == 499
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_swept_at_start(folder: Path) -> None:
    stale = folder / "0123" / "file"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"private")
    Spool(folder, max_bytes=1).open()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_what_stands_in_the_place_of_the_folder_is_replaced_and_not_followed(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "mine").write_text("kept")
    folder.parent.mkdir(parents=True)
    if kind == "file":
        folder.write_text("x")
    else:
        folder.symlink_to(kept if kind == "link" else tmp_path / "nowhere")
    Spool(folder, max_bytes=1).open()
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (kept / "mine").read_text() == "kept"
