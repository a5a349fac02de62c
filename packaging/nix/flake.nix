{
  description = "Fine-tune GGUF language models on the device they will run on";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      each = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = each (pkgs: let
        # later ones carry a click of their own, with which the command does not work
        typer = pkgs.python3Packages.typer.overridePythonAttrs {
          version = "0.25.1";
          src = pkgs.fetchPypi {
            pname = "typer";
            version = "0.25.1";
            sha256 = "@TYPER_SOURCE_SHA256@";
          };
          doCheck = false;
        };
      in {
        default = pkgs.python3Packages.buildPythonApplication rec {
          pname = "fabric-llm";
          version = "@VERSION@";
          pyproject = true;

          src = pkgs.fetchurl {
            url = "@URL@";
            sha256 = "@SHA256@";
          };

          build-system = with pkgs.python3Packages; [ setuptools cffi ];
          dependencies = (with pkgs.python3Packages; [ cffi numpy click jinja2 tqdm regex ]) ++ [ typer ];
          pythonRelaxDeps = [ "click" ]; # nixpkgs has one version of it

          doCheck = false;
          pythonImportsCheck = [ "fabric" ];
          postInstallCheck = "$out/bin/fabric devices";
          doInstallCheck = true;

          meta = {
            description = "Fine-tune GGUF language models on the device they will run on";
            homepage = "https://pypi.org/project/fabric-llm/";
            license = pkgs.lib.licenses.asl20;
            mainProgram = "fabric";
            platforms = systems;
          };
        };
      });
    };
}
