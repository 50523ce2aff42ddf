// Wide tables and code scroll sideways; with this, by keyboard, too.
document$.subscribe(() => setTimeout(() => {
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre code").forEach((part) => { part.tabIndex = 0; });
}));
