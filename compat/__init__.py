"""Drop-in replacements for pools that programs already use, built on `distpool`'s public names only.

Import them as `distpool.compat.<name>`. This folder lies at the top level of the source tree and is mapped into the
package when it is installed, which keeps it honest: a module here may say `import distpool` and nothing deeper.
Nothing is imported here, so that asking for one replacement does not load the others.
"""
