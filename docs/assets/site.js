// What scrolls sideways has to be reachable by keyboard; the theme wraps tables after the page has loaded.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .tabbed-labels, .formula")) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    }
  }),
);
