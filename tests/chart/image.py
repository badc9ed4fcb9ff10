"""Checks an OCI image of the driver: `image.py FILE`. Every digest and size in it is true, its one layer holds a static
program that runs with nothing else there, and it is no larger than it may be."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile

LARGEST = 15_000_000


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def main(path):
    assert os.path.getsize(path) < LARGEST, f"{os.path.getsize(path)} bytes"
    with tarfile.open(path) as image, tempfile.TemporaryDirectory() as root:
        read = lambda name: image.extractfile(f"./{name}").read()

        def blob(of):
            data = read("blobs/sha256/" + of["digest"].removeprefix("sha256:"))
            assert digest(data) == of["digest"] and len(data) == of["size"], of
            return data

        assert json.loads(read("oci-layout"))["imageLayoutVersion"] == "1.0.0"
        (entry,) = json.loads(read("index.json"))["manifests"]
        manifest = json.loads(blob(entry))
        config = json.loads(blob(manifest["config"]))
        (layer,) = manifest["layers"]
        content = gzip.decompress(blob(layer))
        assert [digest(content)] == config["rootfs"]["diff_ids"]
        assert config["config"]["User"] == "65534:65534"
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            tarfile.open(file.name).extractall(root)
        enter = ["unshare", "--map-root-user", "--root", root] if os.getuid() else ["chroot", root]
        said = subprocess.run([*enter, *config["config"]["Entrypoint"], "--version"], capture_output=True, text=True, check=True)
        assert said.stdout.startswith("orlop-csi "), said
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB, {said.stdout.strip()}, digests true")


main(sys.argv[1])
