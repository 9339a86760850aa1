"""A validator of deliveries with the interface of the real one: `POST /{sku}`, multipart field `zip_file`.

It opens the zip and judges what is in it. A sku that contains `-slow` is answered after 3 s, `-flaky` with 503 the
first two times, `-down` always with 503. `GET /calls` tells how often each sku was asked about.

Run by `Validator` as `python -m ncr_worker.sandbox.validator KEY_FILE PORT`.
"""

from __future__ import annotations

import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Annotated, Any, BinaryIO

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, UploadFile

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port, http_ok, throw_away_secret

API_KEY_HEADER = "x-bond-api-public-key"
GLB_MAGIC = b"glTF"
LARGE_TEXTURE = 4 * 1024 * 1024
TEXTURES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".ktx2"}
SLOW_SECONDS = 3.0
FLAKY_REFUSALS = 2


class Validator(ServerProcess):
    name = "validator"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.api_key = throw_away_secret()
        self._key_file = self.folder / "api_key"
        self._key_file.touch(mode=0o600)
        self._key_file.write_text(self.api_key)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ncr_worker.sandbox.validator", str(self._key_file), str(self.port)]

    def ready(self) -> bool:
        return http_ok(f"{self.url}/healthz")

    def env(self) -> dict[str, str]:
        return {
            "VALIDATOR_URL": self.url,
            "VALIDATOR_API_KEY": self.api_key,
            "VALIDATOR_API_KEY_HEADER": API_KEY_HEADER,
        }


def judge(sku: str, upload: BinaryIO) -> dict[str, Any]:
    """What the validator says about one zip: result, reasons, number of files."""
    try:
        with zipfile.ZipFile(upload) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            broken = archive.testzip()
            errors = [f"{broken}: checksum is wrong"] if broken else _model_errors(sku, archive, files)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return {"result": "Invalid", "reasons": [f"the zip cannot be read: {error}"], "files": 0}
    warnings = [
        f"{entry.filename}: texture of {entry.file_size:,} bytes is larger than {LARGE_TEXTURE:,}"
        for entry in files
        if PurePosixPath(entry.filename).suffix.lower() in TEXTURES and entry.file_size > LARGE_TEXTURE
    ]
    result = "Invalid" if errors else "Warning" if warnings else "Valid"
    return {"result": result, "reasons": errors + warnings, "files": len(files)}


def _model_errors(sku: str, archive: zipfile.ZipFile, files: Sequence[zipfile.ZipInfo]) -> list[str]:
    models = [entry for entry in files if entry.filename.endswith(".glb")]
    errors = []
    if not any(PurePosixPath(entry.filename).name == f"{sku}.glb" for entry in models):
        errors.append(f"{sku}.glb is missing")
    for entry in models:
        with archive.open(entry) as model:
            if model.read(len(GLB_MAGIC)) != GLB_MAGIC:
                errors.append(f"{entry.filename}: not a binary glTF file")
    return errors


class _Desk:
    """Counts the calls and decides, by the sku's name, whether to answer now."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._lock = Lock()  # endpoints run in a pool of threads

    def receive(self, sku: str) -> None:
        with self._lock:
            self.calls[sku] += 1
            call = self.calls[sku]
        if "-down" in sku or ("-flaky" in sku and call <= FLAKY_REFUSALS):
            raise HTTPException(503, "the validator is busy", headers={"Retry-After": "1"})
        if "-slow" in sku:
            time.sleep(SLOW_SECONDS)


def create_app(api_key: str) -> FastAPI:
    desk = _Desk()
    app = FastAPI(title="Validator", docs_url=None, redoc_url=None)

    def authorize(key: Annotated[str, Header(alias=API_KEY_HEADER)] = "") -> None:
        if key != api_key:
            raise HTTPException(401, f"{API_KEY_HEADER} is missing or wrong")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/calls")
    def calls() -> dict[str, int]:
        return dict(desk.calls)

    @app.post("/{sku}", dependencies=[Depends(authorize)])
    def validate(sku: str, zip_file: UploadFile) -> dict[str, Any]:  # FastAPI has spooled the upload to disk
        desk.receive(sku)
        return {"data": [{"sku": sku, **judge(sku, zip_file.file)}]}

    return app


def main() -> None:
    key_file, port = sys.argv[1:]
    app = create_app(Path(key_file).read_text())
    uvicorn.run(app, host=LOOPBACK, port=int(port), log_level="warning", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
