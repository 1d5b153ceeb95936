// Formulas are marked by arithmatex. KaTeX comes with the site, so that they show without a network.
// The theme changes pages without loading them anew, so each one is typeset when it arrives.
document$.subscribe(() => {
  for (const marked of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(marked, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
      throwOnError: false,
    });
  }
});
