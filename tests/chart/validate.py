"""Holds a rendered chart and its values against published schemas: `validate.py CHART RELEASE FILE [FILE]...`, where RELEASE is
the version of Kubernetes, or `values` for values of the chart."""

import json
import sys

import jsonschema
import kubernetes_validate
import yaml

# Kinds that are not Kubernetes' own, of definitions that a cluster gets by itself.
OTHERS = {
    "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "SnapshotMetadataService": "cbt.storage.k8s.io/v1alpha1",
}


def merged(below, above):
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {key: merged(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}


def main(chart, release, files):
    for file in files:
        documents = [d for d in yaml.safe_load_all(open(file)) if d]
        if release == "values":
            schema = json.load(open(f"{chart}/values.schema.json"))
            values = merged(yaml.safe_load(open(f"{chart}/values.yaml")), documents[0])
            jsonschema.validate(values, schema)
            continue
        for document in documents:
            kind = document["kind"]
            if OTHERS.get(kind) == document["apiVersion"]:
                continue
            try:
                kubernetes_validate.validate(document, release, strict=True)
            except Exception as error:
                sys.exit(f"{file}: {kind} {document['metadata']['name']}: {error}")


main(sys.argv[1], sys.argv[2], sys.argv[3:])
