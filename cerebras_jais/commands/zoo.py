"""`cerebras-jais zoo`: cszoo with the plugin registered."""

from __future__ import annotations

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False
)
@click.argument("arguments", metavar="ARGS...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def zoo(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run cszoo, the command line of the Model Zoo, with the models jais_family and jais_adapted.

    \b
      cerebras-jais zoo fit configs/tiny/jais.yaml
      cerebras-jais zoo config validate configs/tiny/jais.yaml
      cerebras-jais zoo model info jais_family
    """
    from cerebras_jais.modelzoo.installed import modelzoo_is_installed, require_modelzoo
    from cerebras_jais.modelzoo.process import become_zoo

    if not modelzoo_is_installed() and (not arguments or arguments[0] in ("-h", "--help")):
        click.echo(context.get_help())  # with the Model Zoo cszoo gives its own, which lists the verbs
        return
    require_modelzoo()
    become_zoo(arguments)
