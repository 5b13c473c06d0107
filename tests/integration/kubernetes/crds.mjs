// Validates custom resources, a JSON list on standard input, by the schemas that their projects publish.
// Prints a JSON list of {kind, name, error}; `unknown` as error where there is no schema.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const packages = {
  "keda.sh": "@kubernetes-models/keda",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const found = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = object.metadata.name;
  const group = object.apiVersion.split("/")[0];
  let error = "";
  try {
    const path = `${process.argv[2]}/node_modules/${packages[group]}/${object.apiVersion}/${object.kind}.js`;
    const Model = (await import(pathToFileURL(path)))[object.kind];
    new Model(object).validate();
  } catch (problem) {
    error = problem.code === "ERR_MODULE_NOT_FOUND" ? "unknown" : String(problem.message);
  }
  found.push({ kind: object.kind, name, error });
}
console.log(JSON.stringify(found));
