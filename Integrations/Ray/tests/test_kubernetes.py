"""The manifest: what must be in it, what Ray makes of it, and, where TURBODIFFUSION_RAY_CRD names KubeRay's schema of a RayService
(ray-operator/config/crd/bases/ray.io_rayservices.yaml), all of it against that."""
import json
import os
import re
import unittest

from support import HERE
from turbodiffusion_ray.config import Fleet

try:
    import yaml
except ImportError:
    yaml = None

MANIFEST = os.path.join(os.path.dirname(HERE), "kubernetes/fleet.yaml")


def strict(schema):
    """Objects have no other members than the schema names: the API server would drop them without a word."""
    if isinstance(schema, dict):
        schema = {name: strict(value) for name, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
            schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        # Go's regular expressions are not Python's, and formats are only for people.
        return {name: value for name, value in schema.items() if not (name == "pattern" and isinstance(value, str))}
    return [strict(value) for value in schema] if isinstance(schema, list) else schema


@unittest.skipIf(yaml is None, "PyYAML is not installed: make ray has it")
class ManifestTests(unittest.TestCase):
    def setUp(self):
        with open(MANIFEST) as file:
            self.objects = list(yaml.safe_load_all(file))
        self.service = next(object for object in self.objects if object["kind"] == "RayService")
        self.cluster = self.service["spec"]["rayClusterConfig"]
        self.serve = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        self.fleet = Fleet.parse(self.serve["applications"][0]["args"])

    def groups(self):
        return [self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"]]

    def test_structure(self):
        self.assertEqual(self.service["apiVersion"], "ray.io/v1")
        self.assertEqual(self.service["spec"]["upgradeStrategy"], {"type": "None"})
        claims = {object["metadata"]["name"]: object["spec"] for object in self.objects if object["kind"] == "PersistentVolumeClaim"}
        used = set()
        for group in self.groups():
            pod = group["template"]["spec"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            (container,) = pod["containers"]
            self.assertEqual(container["resources"]["requests"], container["resources"]["limits"])
            for mount in container["volumeMounts"]:
                self.assertIn(mount["name"], volumes)
            used |= {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume}
            self.assertTrue(all(isinstance(value, str) for value in group["rayStartParams"].values()))
        self.assertEqual(used, set(claims))
        self.assertEqual(claims["turbodiffusion-jobs"]["accessModes"], ["ReadWriteOnce"])
        self.assertEqual(claims["turbodiffusion-videos"]["accessModes"], ["ReadWriteMany"])

    def test_places(self):
        """The jobs are on a volume of the head; results and models are where every worker mounts them."""
        def mounts(group):
            return tuple(mount["mountPath"] + "/" for mount in group["template"]["spec"]["containers"][0]["volumeMounts"])

        head, *workers = self.groups()
        for path in (self.fleet.database, self.fleet.results + "/", self.fleet.api_key_file):
            self.assertTrue(path.startswith(mounts(head)), path)
        for group in workers:
            self.assertTrue((self.fleet.results + "/").startswith(mounts(group)))
        for pool in self.fleet.pools:
            self.assertTrue(all(model.startswith("/models/") for model in pool.models))
            self.assertGreaterEqual(
                min(group["template"]["spec"]["terminationGracePeriodSeconds"] for group in workers), self.fleet.drain_seconds
            )

    def test_pools_fit_the_groups(self):
        for pool in self.fleet.pools:
            fitting = []
            for group in self.cluster["workerGroupSpecs"]:
                # Quoted once for YAML and once for the shell of `ray start`.
                resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
                limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
                if pool.resources.items() <= resources.items() and int(limits["nvidia.com/gpu"]) >= pool.gpus:
                    fitting.append(group)
            self.assertEqual(len(fitting), 1, pool.name)
            self.assertLessEqual(pool.max_replicas, fitting[0]["maxReplicas"])

    def test_one_version_of_ray(self):
        root = os.path.join(HERE, "../../..")
        found = {self.cluster["rayVersion"]}
        with open(os.path.join(os.path.dirname(MANIFEST), "Dockerfile")) as file:
            found.add(re.search(r"rayproject/ray:([0-9.]+)", file.read())[1])
        for path in ("Makefile", "Scripts/wheel"):
            with open(os.path.join(root, path)) as file:
                found |= set(re.findall(r"ray\[[a-z,]+\]==([0-9.]+)", file.read()))
        self.assertEqual(len(found), 1, found)

    def test_what_ray_makes_of_it(self):
        try:
            from ray.serve.schema import ServeDeploySchema
        except ImportError:
            self.skipTest("Ray is not installed: make ray has it")
        schema = ServeDeploySchema.model_validate(self.serve)
        self.assertEqual(schema.applications[0].import_path, "turbodiffusion_ray.fleet:build")

    @unittest.skipUnless(os.environ.get("TURBODIFFUSION_RAY_CRD"), "TURBODIFFUSION_RAY_CRD does not name KubeRay's schema")
    def test_schema(self):
        import jsonschema

        with open(os.environ["TURBODIFFUSION_RAY_CRD"]) as file:
            definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        # Once: checking the schema itself takes longest.
        validator = jsonschema.Draft202012Validator(schema)
        validator.validate(self.service)
        # And it does see mistakes.
        for path, value in (("rayClusterConfig.headGroupSpec.template.spec.container", []), ("rayClusterConfig.upgradeStrategy", {"type": "Nothing"}),
                            ("rayClusterConfig.workerGroupSpecs", {})):  # fmt: skip
            wrong = json.loads(json.dumps(self.service))
            place = wrong["spec"]
            *names, last = path.split(".")
            for name in names:
                place = place[name]
            place[last] = value
            with self.assertRaises(jsonschema.ValidationError, msg=path):
                validator.validate(wrong)


if __name__ == "__main__":
    unittest.main()
