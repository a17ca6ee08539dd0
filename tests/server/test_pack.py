"""The pack as a real ComfyUI sees it: nodes, texts, help, templates, folders."""

import json
import re
import urllib.request

from scripts.comfyui import PACK_NAME, ROOT
from tests.nodes.schema import frozen

SNAPSHOT = json.loads((ROOT / "tests" / "nodes" / "schema_snapshot.json").read_text())


def fetch(server, path: str) -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read()


def test_the_pack_loads_without_a_log_error(server):
    # up to here ComfyUI loads packs; what runs later logs errors on purpose
    log, _, _ = server.log.read_text(errors="replace").partition("Starting server")
    listed = re.search(rf"seconds(.*): \S*/{PACK_NAME}$", log, re.MULTILINE)
    assert listed, "ComfyUI did not list the pack among its custom nodes"
    assert listed[1] == "", f"the pack was listed with:{listed[1]}"
    ours = [line for line in log.splitlines() if PACK_NAME.lower() in line.lower() or "ciri." in line]
    assert ours == [line for line in ours if listed[0] in line], "the log says more of the pack than its loading time"


def test_every_node_s_schema_matches_the_snapshot(server):
    described = server.get("/object_info")
    mine = {name: described[name] for name in server.pack_nodes()}
    assert frozen(mine) == SNAPSHOT


def test_texts_arrive_in_both_languages(server):
    texts = server.get("/i18n")
    for language in ("en", "zh"):
        assert set(SNAPSHOT) <= set(texts[language]["nodeDefs"])


def test_help_pages_and_their_pictures_are_served(server):
    for node_id in SNAPSHOT:
        for page in (f"{node_id}.md", f"{node_id}/zh.md"):
            text = fetch(server, f"/extensions/{PACK_NAME}/docs/{page}").decode()
            pictures = re.findall(r"\]\(([^)]+)\)", text)
            assert pictures
            for name in pictures:
                picture = fetch(server, f"/extensions/{PACK_NAME}/docs/{name}")
                assert picture[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG"), f"{name} is neither JPEG nor PNG"


def test_workflows_are_offered_as_templates_with_a_thumbnail(server):
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")[PACK_NAME]) == names
    for name in names:
        served = json.loads(fetch(server, f"/api/workflow_templates/{PACK_NAME}/{name}.json"))
        assert served == json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        assert fetch(server, f"/api/workflow_templates/{PACK_NAME}/{name}.jpg")[:2] == b"\xff\xd8"


def test_the_model_folder_is_known(server):
    assert "ciri" in [folder["name"] for folder in server.get("/experiment/models")]
