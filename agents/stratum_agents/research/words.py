"""English words that say nothing of a paper's subject, as they are written.

BREAKING words end a phrase: function words, and what every abstract says (we propose, results show).
WEAK words carry a phrase but are no term alone: `test case` and `deep learning` are, `case` is not.
"""

BREAKING = """
a ability able about above abstract accept accepted accomplish according accordingly account
achieve achieved achievement achieving across actually additionally address addressed addressing
adequate adopt adopted adopting advance advanced advancement advantage advocate affect after
again against aim aimed aiming al all allow allowed allowing almost alone along already also
alternative although always am among amongst amount an analyse analysed analysing analyze
analyzed analyzing and another any anything appear applicability applicable applied apply
applying appropriate approximate are aren't argue arise around as aspect assess assessed
assessing associated assume assumed assumption at attempt author automatically available average
away base based basic basis be became because become been before behave behind being below
benefit beside besides best better between beyond both brief bring broad broader build built but
by call called came can can't cannot capability capable careful cause central certain cf
challenge challenging characterise characteristic characterize choice choose chosen claim
classical clear clearly close closely cm collect collected com combination combine combined
combining come common commonly comparative compare compared comparing comparison complement
complementary complete completely complex complicated comprehensive concept conceptual concern
concerning conclude conclusion concrete conduct conducted conducting consequently consider
considerable considerably consideration considered considering consist consistent consistently
consisting constitute construct constructed contain containing context contribute contribution
conventional correspond corresponding could couldn't cover create created creating critical
crucial current currently dealing decade define defined defining definition demonstrate
demonstrated demonstrating depend depending deploy deployed deploying derive derived describe
described describing designed designing desired despite detail detailed detect detecting detects
determine determined develop developed developing devise devised did didn't difference different
differently difficult difficulty direct direction directly discover discuss discussed discussion
distinct diverse do does doesn't doing don't done down draw drawn drive driven drop drops due
during e.g each easier easily easy effective effectively effectiveness efficiency efficient
efficiently effort eg eight either else elusive emerge emerged emergence emerging emphasizing
empirical empirically employ employed enable enabled enabling encourage engage enhance enhanced
enhancing enough ensure ensuring entire equivalent especially essential establish established
estimate estimated et etc evaluate evaluated evaluating evaluation even ever every everything
evidence evolve evolving examine examined examining example excellent execute executing exhibit
exist existing expect expected expensive experiment experimental experimentally explain
explaining explicit explicitly exploit explore explored exploring express extend extended
extending extensive extent extreme facilitate fact factor fail fall falls far fast faster favour
few fifteen fig figure find finding fine first five fix fixed focus focused focusing follow
followed following for found foundational four fourth framework from fruitful fulfil full fully
fundamental further furthermore future gain gap general generalise generalize generally generate
generated generating generic get gev ghz give given gives giving go goal good great greater
greatly grow growing guide had half hand handle hard has have haven't having he heavily held
help helpful helping hence her here herein herself hi high higher highest highlight highly him
himself his history hold hope how however http https huge i i.e idea identified identify
identifying ie if ii iid iii illustrate immediate impact implement implemented implementing
implication imply importance important improve improved improvement improving in include
included including incorporate increase increased increasing increasingly incur indeed indicate
individual individually inform inherent initial innovation innovative insight inspire inspired
instead insufficient integrate integrated integrating intend intended intent interest interested
interesting intermediate into introduce introduced introducing introduction intuitive
investigate investigated investigating investigation involve involved involving is isn't issue
it it's its itself just keep keeping keeps kept kev key khz kind know knowing known lack
large-scale largely larger largest last later latter lead leading learn learned least leave left
less let lets level leverage leveraging lie like likely limit limitation limited limits little
long longer look lot low made main mainly maintain major majority make making manner many may
maybe me mean meaningful meanwhile meet mention method methodology mev mhz might million mine
mitigate mm moderate modern month more moreover most mostly motivate motivated motivating much
multiple must my myself namely narrow naturally nature near nearly necessary necessity need
needed neither never nevertheless new newly next nine nm no nontrivial nor normally not notable
notably note nothing novel novelty now nowadays numerous objective observe observed obtain
obtained obtaining occur of off offer offered offering often on once one ones only onto
open-source operate opportunity option or ordinary org original other otherwise our ours
ourselves out outcome outline outperform outperformed outperforming over overall overcome
overview own paper part partially particular particularity particularly past people per percent
percentage perform performed performing perhaps perspective phenomenon pivotal place play please
plethora popular pose posed possibility possible possibly potentially powerful practical
practicality practice practitioner precise predefined predict predicted predicting predicts
prefer preferred preliminary presence present presented presenting previous previously primary
principle prior procedure proceed produce produced producing profound prominence prominent
promise promising proof-of-concept proper properly proposal propose proposed proposing prove
proved proven provide provided providing public publicly purpose pursue put quickly quite raise
rapid rapidly rather reach read ready real real-life real-world realistic realize really reason
recent recently recognize recommend reduce reduced reducing refer refined regard regarding
relate related relating relationship relative relatively release released relevance relevant
reliably rely relying remain remaining remark report reported reporting represent representing
require required requirement requiring research researcher resolve respect respectively result
resulting return reveal revealing review reviewed revisit revolutionize rich right rise rising
role root route run running said same satisfactory satisfy say scientist scope second section
securing see seek seem seen serve serving setting setup seven several severe shall shape share
sharp she short should show showing shown significance significant significantly similar simple
simpler simply simultaneously since situation six small smaller smallest so solely solve solved
solving some something sometime soon sophisticated sort sought span special specific
specifically spectrum stand standard start state-of-the-art step-by-step still straightforward
strategy strength strong stronger studied study studying subject subsequent subsequently subset
substantial substantially success successful successfully such suffer sufficient suggest
suggesting suitable suited summarise summarize supported supporting surprising surprisingly
systematic systematically table tackle tailored take taken targeted targeting task technical
technique tell ten tend term than thank that that's the their them theme themselves then there
thereby therefore these they thing think third this thorough thoroughly those though thousand
three through throughout thus time-consuming to today together too took total toward towards
tradition traditional train trained trains translate treat tremendous trend true try turn twenty
two typical typically ubiquitous ultimately uncover under underlying understand understood
unfortunately unified unify unifying unique unknown unless unlike unlock until up upon us use
used useful using usually utilise utilised utilising utilize utilized utilizing validate
validated valuable variant variation varied variety various vary version very via view vital vs
want was way we weakness well were what whatever when where whereas whereby wherein whether
which while who whole whom whose why wide widely wider widespread will with within without work
workshop worse worth would www year yet yield yielding you your yours yourself
"""

WEAK = """
access accuracy action activity actual algorithm analysis answer answering application approach
architecture area article artifact assessment assistance attention automated automatic
automation aware behavior behaviour benchmark bound budget building business capacity capture
case category change check class classification classifier code collection community component
computation computational computer computing condition configuration constraint content control
core correct correctness cost criteria criterion customer data dataset day deep degree demand
deployment design detection developer development device digital dimension distribution domain
dynamic education effect element embedded end energy engineer engineering environment error
estimation execution experience expert explanation exploration extension face failure family
feature field file flexible flow form formal format formula formulation function functional
functionality generation generator group growth guarantee hardware heuristic human
identification image implementation industrial industry inference information infrastructure
input instance integration interaction interface internal job knowledge language large latent
layer learning length library life light linear list local logic logical machine management
mapping mathematical matter maximum measure measurement mechanism metric minimal minimum mode
model modeling modelling module multi natural network neural non normal number object
observation online open operation operator optimal optimisation optimization order output
participant path pattern perception performance person phase physical pipeline platform point
policy population potential precision prediction predictive probability problem process product
production program programming progress project property protocol prototype provider quality
quantity question random range rank rate ratio reasoning recommendation regression relation
reliability representation resource response robust robustness rule safety sample sampling scale
scenario scheme school score search security selection self sequence series service set
simulation simulator single size software solution source space specification speed stage state
statement static statistic statistical step structural structure student style suite support
survey synthesis system target team technology test tester testing theoretical theory threshold
time tool tooling topic trace training transaction transform type understanding unit universal
user validation validity value variable vector verification video weight window word world
"""
