"""A folder that looks like a llama.cpp checkout: its tools take the real ones' arguments and write real GGUF files.

Weights are zeros; names, sizes, types, template and tokens are the model's, unless `fault` spoils one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONVERTER = """
import argparse, json, struct, sys
from pathlib import Path
import gguf, numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
for name in ("outfile", "outtype", "model-name"):
    parser.add_argument(f"--{name}", required=True)
given = parser.parse_args()
fault = (Path(__file__).parent / "fault.txt").read_text()
print("INFO: Loading model", given.model.name)
if fault == "fails":
    print("Traceback: one of many lines", "ValueError: no such architecture", sep="\\n", file=sys.stderr)
    sys.exit(3)
if fault in ("nothing", "rubbish"):
    Path(given.outfile).write_bytes(b"weights?") if fault == "rubbish" else None
    sys.exit()
config = json.loads((given.model / "config.json").read_text())
spoken = json.loads((given.model / "tokenizer_config.json").read_text())
added = json.loads((given.model / "tokenizer.json").read_text())["added_tokens"]
tokens = {each["content"]: each["id"] for each in added}
template = (given.model / "chat_template.jinja").read_text()
outtype = {"auto": "bf16"}.get(given.outtype, given.outtype)
writer = gguf.GGUFWriter(given.outfile, "llama")
writer.add_name(given.model_name)
writer.add_block_count(config["num_hidden_layers"])
writer.add_embedding_length(config["hidden_size"] + (fault == "width"))
writer.add_file_type(gguf.LlamaFileType[("ALL_" if outtype == "f32" else "MOSTLY_") + outtype.upper()])
writer.add_chat_template(template.replace("### Response", "### Answer") if fault == "template" else template)
writer.add_eos_token_id(tokens[spoken["eos_token"]] + (fault == "eos"))
if fault == "bos":
    writer.add_add_bos_token(True)
file = given.model / "model.safetensors"
with file.open("rb") as handle:
    header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
for name, info in list(header.items())[: -1 if fault == "tensor" else None]:
    if name != "__metadata__":
        writer.add_tensor(name, np.zeros(info["shape"], np.float16))
writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
if fault == "cut":
    Path(given.outfile).write_bytes(Path(given.outfile).read_bytes()[:-1000])
"""

QUANTIZER = """#!{python}
import shutil, sys
import gguf

source, made, kind = sys.argv[1:]
shutil.copyfile(source, made)
field = gguf.GGUFReader(made, "r+").fields["general.file_type"]
field.parts[field.data[0]][0] = gguf.LlamaFileType["MOSTLY_" + kind]
"""


def make_checkout(folder: Path, *, fault: str = "", quantizer: str = "build/bin/llama-quantize") -> Path:
    """Write the tools; `quantizer` is where the binary lies, "" for a checkout that was not built."""
    folder.mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (folder / "fault.txt").write_text(fault)
    if quantizer:
        binary = folder / quantizer
        binary.parent.mkdir(parents=True, exist_ok=True)
        binary.write_text(QUANTIZER.format(python=sys.executable))
        binary.chmod(0o755)
    return folder
